"""The learning rate of each method of table 1, chosen on validation images."""

from channelvq.evaluate.tables import TextTable
from lab.study import RecipeStudy, Result, Run, Tables

HOURS = 1
RESULT = "table1-tuning-small.json"
SHORT = ("train.steps=700", "train.evaluate_every=700", "train.checkpoint_every=350", "train.threads=1")
METHODS = {
    "VQGAN": ("patch", "plain"),
    "VQGAN-LC": ("patch", "lc"),
    "SimVQ": ("patch", "simvq"),
    "IBQ": ("patch", "ibq"),
    "CVQ": ("channel", "plain"),
    "CVQ + SimVQ": ("channel", "simvq"),
    "CVQ + IBQ": ("channel", "ibq"),
}
RATES = ("5e-4", "1e-3")


def run_of(method: str, rate: str, *more: str) -> Run:
    """A method at a learning rate; more: what else is changed."""
    axis, kind = METHODS[method]
    settings = (f"model.quantizer.kind={kind}", f"train.learning_rate={rate}")
    return f"small/axis-{axis}", (*SHORT, *settings, *more)


def tuning(result: Result) -> TextTable:
    """PSNR on validation images of each method at each rate."""
    psnr = {row["name"]: row["validation"]["psnr_64"] for row in result["records"]}
    rows = [[method, *(f"{psnr[f'{method}, rate {rate}']:.2f}" for rate in RATES)] for method in METHODS]
    return TextTable(("method", *(f"rate {rate}" for rate in RATES)), rows)


STUDY = RecipeStudy({f"{method}, rate {rate}": run_of(method, rate) for rate in RATES for method in METHODS})
TABLES: Tables = {"table1-tuning": (RESULT, tuning)}
