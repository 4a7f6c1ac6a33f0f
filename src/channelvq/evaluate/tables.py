"""Figures as text in rows, once: a table has the same cells on a terminal, in Markdown and in HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich.box import SIMPLE_HEAD
from rich.table import Table

from channelvq.terminal import plain, table_title


@dataclass(frozen=True)
class TextTable:
    """title: stands above it on a terminal. note: stands below it."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""

    def terminal(self) -> Table:
        """For `rich.print`: intervals stand below their means, so that 80 columns do."""
        caption = plain(self.note, "table.caption") if self.note else None
        title = table_title(self.title) if self.title else None
        shown = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=0, show_edge=False)
        for place, heading in enumerate(self.headings):
            names = any(row[place][:1].isalpha() for row in self.rows)
            shown.add_column(plain(heading), justify="left" if names else "right", overflow="fold")
        for row in self.rows:
            shown.add_row(*(plain(_stacked(cell)) for cell in row))
        return shown

    def markdown(self) -> str:
        """Without a final line break."""
        lines = [self.headings, ["---"] * len(self.headings), *self.rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{table}\n\n{self.note}" if self.note else table

    def html(self) -> str:
        """A <table>; without headings, rows alone."""
        head = "".join(f"<th>{escape(heading)}</th>" for heading in self.headings)
        rows = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in self.rows)
        return f"<table>{f'<tr>{head}</tr>' if head else ''}{''.join(rows)}</table>"


def _stacked(cell: str) -> str:
    """A cell "20.83 (20.65 to 21.03)" on two lines, where a narrow terminal breaks between numbers only."""
    mean, opened, ends = cell.partition(" (")
    return f"{mean}\n{ends.replace(' to ', '.. ').rstrip(')')}" if opened and " to " in ends else cell
