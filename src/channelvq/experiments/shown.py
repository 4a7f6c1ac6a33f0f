"""Cells as a table for a terminal."""

from collections.abc import Iterable, Sequence

from rich.table import Table


def terminal_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], title: str, caption: str | None = None
) -> Table:
    """A table whose cells are aligned to the right; `rich.print` shows it."""
    shown = Table(title=title, caption=caption)
    for heading in headings:
        shown.add_column(heading, justify="right")
    for cells in rows:
        shown.add_row(*cells)
    return shown
