"""Shares and policies of nested channel dropout on emoji and photographs: every prefix."""

from pathlib import Path

from channelvq.evaluate.tables import TextTable
from lab.plots import line_panels
from lab.study import RecipeStudy, Result, Tables, prefix_table

HOURS = 0.5
RESULT = "nested-small.json"
SHORT = ("train.steps=500", "train.evaluate_every=500", "train.checkpoint_every=250", "train.threads=1")
POLICIES = {
    **{f"alpha {alpha:g}": (f"nested.alpha={alpha:g}",) for alpha in (0.0, 0.25, 0.5, 1.0)},
    "alpha 0.25, one length a batch": ("nested.alpha=0.25", "nested.policy=batch"),
    "alpha 0.25, powers of two": ("nested.alpha=0.25", "nested.lengths=powers"),
    "alpha 0.5, curriculum": (
        "nested.alpha=0.5", "nested.curriculum.alpha=0", "nested.curriculum.shortest=1", "nested.curriculum.until=0.5",
    ),
}  # fmt: skip


def draw(result: Result, path: Path) -> None:
    """PSNR of every prefix, a line for each run."""
    lines = {
        row["name"]: [(prefix["tokens"], prefix["psnr"]) for prefix in row["metrics"]["prefixes"]]
        for row in result["records"]
    }
    line_panels([("tokens", "PSNR (dB)", lines)], path)


def prefixes(result: Result) -> TextTable:
    """PSNR of every run at every prefix."""
    return prefix_table(result["records"])


STUDY = RecipeStudy(
    {name: ("small/axis-channel", (*SHORT, *settings)) for name, settings in POLICIES.items()},
    every_prefix=True,
    plot=draw,
)
TABLES: Tables = {"nested": (RESULT, prefixes)}
