"""The methods of the paper's table 1 at small scale, three seeds, and two budgets of tokens.

Each method is trained at the rate that table1-tuning found best on validation images. What the claims come to is told
image by image.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from channelvq.evaluate.metrics import METRICS, mean_with_interval
from channelvq.evaluate.plots import blank_figure, save_figure
from channelvq.evaluate.tables import TextTable
from lab.studies.table1_tuning import METHODS, run_of
from lab.study import RecipeStudy, Run, Tables

HOURS = 2.5
RESULT = "table1-small.json"
# Of RATES, the better one on validation images: results/table1-tuning-small.json, kept true by a test.
BEST_RATE = dict.fromkeys(METHODS, "1e-3")
# Four times the tokens: as many more channels, or a grid of 16 x 16 patches by a network that halves once less.
_LARGER = {"CVQ": ("model.latent_channels=256",),
           "VQGAN": ("model.network.multipliers=[1]", "model.network.base_channels=96")}  # fmt: skip
# What the paper claims: the first method is better than the second.
CLAIMS = (
    ("CVQ", "VQGAN"), ("CVQ", "VQGAN-LC"), ("CVQ", "SimVQ"), ("CVQ", "IBQ"), ("CVQ, 256 tokens", "VQGAN, 256 tokens"),
    ("CVQ + SimVQ", "CVQ"), ("CVQ + IBQ", "CVQ"), ("CVQ + SimVQ", "SimVQ"), ("CVQ + IBQ", "IBQ"),
)  # fmt: skip
JUDGED = ("psnr", "ssim", "perceptual")  # the metrics that a claim is about, image by image
DIGITS = {"psnr": 2, "ssim": 3, "perceptual": 3, "kid": 3, "frechet": 2}
HEADINGS = ("method", "axis", "tokens", "rate", "use", "perplexity/N", "PSNR", "SSIM", "perceptual", "KID", "Frechet",
            "minutes")  # fmt: skip


def methods(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The records of each method, in the order of the seeds."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in result["records"]:
        by_method.setdefault(row["name"].rpartition(", seed ")[0], []).append(row)
    return by_method


def quality(result: Mapping[str, Any]) -> TextTable:
    """Means over seeds and, for quality, the standard deviation over them."""
    rows = []
    for name, records in methods(result).items():
        m = {key: _over_seeds(records, key) for key in ("use", "perplexity_ratio", *DIGITS)}
        rate = next(change.partition("=")[2] for change in records[0]["overrides"] if "learning_rate" in change)
        over_seeds = [f"{m[key].mean():.{digits}f} ± {m[key].std():.{digits}f}" for key, digits in DIGITS.items()]
        minutes = sum(row["seconds"] for row in records) / len(records) / 60
        rows.append([
            name, records[0]["axis"], str(records[0]["tokens"]), rate, f"{m['use'].mean():.1%}",
            f"{m['perplexity_ratio'].mean():.2f}", *over_seeds, f"{minutes:.0f}",
        ])  # fmt: skip
    return TextTable(HEADINGS, rows)


def _over_seeds(records: list[dict[str, Any]], key: str) -> Float64[Tensor, " s"]:
    return torch.tensor([row["metrics"][key] for row in records], dtype=torch.float64)


def claims(result: Mapping[str, Any]) -> TextTable:
    """For each claim and metric the mean difference with its interval over images, the seeds' own, and a verdict.

    Values are means over seeds, image by image. A claim holds, or is refuted, where the interval leaves out 0 and all
    seeds agree; else it is open.
    """
    of = methods(result)
    rows = []
    for better, worse in CLAIMS:
        cells = [f"{better} better than {worse}"]
        for metric in JUDGED:
            sign = 1 if METRICS[metric].better == "higher" else -1
            difference = _per_image(of[better], metric) - _per_image(of[worse], metric)
            interval = mean_with_interval(difference.mean(0), seed=0)
            gains = [sign * value for value in (interval.low, interval.high, *difference.mean(1).tolist())]
            verdict = "holds" if min(gains) > 0 else "refuted" if max(gains) < 0 else "open"
            ends = f"({interval.low:+.{DIGITS[metric]}f} to {interval.high:+.{DIGITS[metric]}f})"
            cells.append(f"{verdict}: {interval.mean:+.{DIGITS[metric]}f} {ends}")
        rows.append(cells)
    headings = ("claim", *(f"{METRICS[metric].heading}, difference (95 %)" for metric in JUDGED))
    return TextTable(headings, rows)


def _per_image(records: list[dict[str, Any]], metric: str) -> Float64[Tensor, "s n"]:
    """Values of each seed's run at full length."""
    return torch.tensor([row["per_image"][metric][str(row["tokens"])] for row in records], dtype=torch.float64)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Use of the codebook, PSNR and perceptual distance of each method, a dot for each seed."""
    of = methods(result)
    panels = {"use": "use of the codebook", "psnr": "PSNR (dB)", "perceptual": "perceptual distance"}
    figure = blank_figure(12, 0.4 * len(of) + 1)
    for place, (metric, label) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1)
        for height, records in enumerate(of.values()):
            values = _over_seeds(records, metric).tolist()
            axes.plot(values, [height] * len(values), "o", color="C0" if records[0]["axis"] == "channel" else "C1")
        axes.set_yticks(range(len(of)), list(of) if not place else [""] * len(of))
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def _seeds(name: str, method: str, *more: str) -> dict[str, Run]:
    rate = BEST_RATE[method]
    return {f"{name}, seed {s}": run_of(method, rate, *([f"train.seed={s}"] if s else []), *more) for s in range(3)}


STUDY = RecipeStudy(
    {
        **{name: run for method in METHODS for name, run in _seeds(method, method).items()},
        **{name: run for m, o in _LARGER.items() for name, run in _seeds(f"{m}, 256 tokens", m, *o).items()},
    },
    features=True,
    per_image=JUDGED,
    plot=draw,
)
TABLES: Tables = {"table1": (RESULT, quality), "table1-claims": (RESULT, claims)}
