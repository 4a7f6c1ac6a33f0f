"""Plots of results; matplotlib is loaded when one is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from channelvq.errors import InputError
from channelvq.evaluate.baselines import BaselinePoint
from channelvq.evaluate.reconstruction import ReconstructionReport
from channelvq.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {"pca": "PCA", "jpeg": "JPEG", "webp": "WebP"}


def quality_against_bytes(
    report: ReconstructionReport, baselines: Mapping[str, Sequence[BaselinePoint]], path: str | Path, note: str = ""
) -> None:
    """Draw PSNR against bytes an image: each prefix of the tokens with its interval, and a line for each baseline.

    baselines: as `baseline_curves` returns them. path: its suffix picks the format (png, svg, pdf). note: stands below.
    Raises InputError where matplotlib is missing or has no such format.
    """
    figure = blank_figure()
    axes = figure.add_subplot()
    points = report.prefixes
    means = [point.psnr.mean for point in points]
    below = [point.psnr.mean - point.psnr.low for point in points]
    above = [point.psnr.high - point.psnr.mean for point in points]
    axes.errorbar(
        [p.num_bytes for p in points], means, yerr=[below, above], marker="o", capsize=3, label="tokens, each prefix"
    )
    for name, curve in baselines.items():
        # A codec is drawn at the bytes it used: at small budgets its smallest file is larger than the budget.
        xy = sorted({(point.num_bytes, point.psnr) for point in curve})
        axes.plot([x for x, _ in xy], [y for _, y in xy], marker=".", linestyle="--", label=LABELS.get(name, name))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("bytes an image" + (f"\n({note})" if note else ""))
    axes.set_ylabel("PSNR (dB)")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def channel_curves(curves: Mapping[str, tuple[int, Sequence[float]]], label: str, path: str | Path) -> None:
    """Draw lines over channels 1..C: by name, the channels that a line leaves out at its start, and its values."""
    figure = blank_figure()
    axes = figure.add_subplot()
    for name, (skipped, values) in curves.items():
        axes.plot(range(skipped + 1, skipped + len(values) + 1), values, label=name)
    axes.set_xlabel("channel")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    # Below: the curves leave no free corner.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    save_figure(figure, path)


def check_plot(path: str | Path = "plot.png") -> None:
    """InputError where matplotlib is missing or has no format for a path: before work is spent on what is drawn."""
    _format_of(path, blank_figure())


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure in the format of the path's suffix, whole or not at all; missing folders are made."""
    kind = _format_of(path, figure)
    write_atomically(Path(path), lambda stream: figure.savefig(stream, format=kind, dpi=150))


def _format_of(path: str | Path, figure: "Figure") -> str:
    suffix = Path(path).suffix
    kind = suffix.lower().removeprefix(".")
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"cannot draw {str(path)!r}: no image format for {suffix!r}; use .png, .svg or .pdf")
    return kind


def blank_figure(width: float = 6, height: float = 4) -> "Figure":
    """An empty matplotlib figure of this size in inches; raises InputError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'channelvq[plot]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no state shared with pyplot
    return figure
