"""Pixel loss alone against the full recipe: perceptual and adversarial loss, and the weight of short prefixes."""

from pathlib import Path

import torch

from channelvq.evaluate.metrics import with_interval
from channelvq.evaluate.tables import TextTable
from channelvq.train.engine import read_metrics
from lab.study import RecipeStudy, Record, Result, Tables

HOURS = 1
RESULT = "losses-small.json"


def steadiness(folder: Path) -> Record:
    """{"game": how steady the discriminator was in the second half of training}; empty where there was none."""
    lines = [line for line in read_metrics(folder) if "discriminator" in line]
    late = [line for line in lines if 2 * line["step"] > lines[-1]["step"]]
    if not late:
        return {}
    loss = torch.tensor([line["discriminator"] for line in late], dtype=torch.float64)
    norm = torch.tensor([line["discriminator_gradient_norm"] for line in late], dtype=torch.float64)
    return {"game": {"discriminator_mean": float(loss.mean()), "discriminator_deviation": float(loss.std()),
                     "gradient_norm_mean": float(norm.mean()), "gradient_norm_max": float(norm.max())}}  # fmt: skip


def quality(result: Result) -> TextTable:
    """Quality of the runs, by pixels and by features."""
    rows = [
        [
            row["name"], str(row["steps"]), f"{m['psnr']:.2f}", f"{m['ssim']:.3f}", with_interval(m, "perceptual", 4),
            f"{m['kid']:.4f}", f"{m['frechet']:.2f}", f"{m['use']:.1%}", f"{row['seconds'] / 60:.0f}",
        ]
        for row in result["records"]
        for m in [row["metrics"]]
    ]  # fmt: skip
    headings = ("run", "steps", "PSNR", "SSIM", "perceptual distance (95 %)", "KID", "Frechet", "use", "minutes")
    return TextTable(headings, rows)


def game(result: Result) -> TextTable:
    """How steady the discriminator was, and what short prefixes restore on validation images."""
    rows = [
        [
            row["name"], *(f"{row['validation'][f'psnr_{k}']:.2f}" for k in (4, 16, 64)),
            f"{row['game']['discriminator_mean']:.2f} +- {row['game']['discriminator_deviation']:.2f}",
            f"{row['game']['gradient_norm_mean']:.1f} ({row['game']['gradient_norm_max']:.1f})",
        ]
        for row in result["records"]
        if "game" in row
    ]  # fmt: skip
    headings = ("run", "PSNR of 4 tokens", "of 16", "of 64", "discriminator loss", "its gradient's norm (largest)")
    return TextTable(headings, rows)


STUDY = RecipeStudy(
    {
        "pixel": ("small/conv", ("train.steps=2000", "model.quantizer.kind=plain")),
        "full": ("small/full", ()),
        "full, one weight for every prefix": ("small/full", ("objective.adversarial.prefix_weight=false",)),
    },
    features=True,
    shown=6,
    more=steadiness,
)
TABLES: Tables = {"losses": (RESULT, quality), "game": (RESULT, game)}
