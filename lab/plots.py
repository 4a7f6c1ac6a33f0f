"""Plots of studies."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from channelvq.evaluate.plots import blank_figure, save_figure


def line_panels(
    panels: Sequence[tuple[str, str, Mapping[str, Sequence[tuple[float, float]]]]], path: str | Path
) -> None:
    """Draw panels of lines side by side: of each the labels of x and y, and lines of points (x, y) by name."""
    alone = len(panels) == 1
    figure = blank_figure(7, 5.6) if alone else blank_figure(5 * len(panels), 4.6)
    for place, (across, label, lines) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        for name, points in lines.items():
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
        axes.set_xscale("log", base=2)
        if across != "codes":
            axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(across)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    # Below the panels: inside, it would hide lines.
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if alone else 4)
    save_figure(figure, path)
