"""Text on a terminal by rich, which would read "[bold]" in a path, a name or a stored result as its markup."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # a third of what the module takes to import
    from rich.progress import Progress, ProgressColumn

# What is being read by this thread, in words: warnings of other libraries do not tell.
READING: ContextVar[str] = ContextVar("READING", default="")


def printable(text: str) -> str:
    """Text for people, in which what a terminal would obey, or could not show, is written as in Python: "\\x1b".

    A file's name may hold anything but a slash. Line breaks stay.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def silence() -> None:
    """Let what is still to be written to stdout go nowhere, once its reader is gone."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress_bar(*columns: "str | ProgressColumn", transient: bool = True) -> "Progress":
    """A bar on stderr, where that is a terminal; nothing elsewhere. columns: default those of rich."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=transient, disable=not console.is_terminal)


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that stays, on a terminal; nothing elsewhere. Gives what takes (done, total)."""
    with progress_bar(transient=False) as bar:
        row = bar.add_task(what)
        yield lambda done, total: bar.update(row, completed=done, total=total)


def plain(text: str, style: str = "") -> Text:
    """Text that rich shows as it is, for whatever a user named.

    Not `rich.markup.escape`, which doubles a last backslash and leaves ":cat:" to become a picture.
    """
    return Text(printable(text), style)


def table_title(text: str) -> Text:
    """The same for the title of a table."""
    return plain(text, "table.title")


def terminal_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], name: str | None = None, caption: str | None = None
) -> Table:
    """A table of plain text whose cells are aligned to the right; `rich.print` shows it. name: its title."""
    shown = Table(title=name and table_title(name), caption=caption and plain(caption, "table.caption"))
    for heading in headings:
        shown.add_column(plain(heading), justify="right")
    for cells in rows:
        shown.add_row(*map(plain, cells))
    return shown
