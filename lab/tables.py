"""Tables of README and docs, written from results/*.json, so that no figure is typed by hand.

A page holds `<!-- table: axis -->` and `<!-- end -->`; what is between them is replaced. A table is declared in TABLES
of the file that makes its result: a study, a bench, or what bundles a model.
"""

import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from channelvq.errors import InputError
from channelvq.evaluate.results import reading
from lab import bench, bundle, studies
from lab.results import read_result
from lab.study import Tables

OPENING = "<!-- table:"
SECTION = re.compile(rf"{OPENING} (?P<name>[\w-]+) -->\n(?:(?!{OPENING}).)*?<!-- end -->", re.DOTALL)


def declared() -> Tables:
    """All tables by name: the file of results/ that each is made from, and how."""
    tables: Tables = {}
    for package in (studies, bench, bundle):
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            tables |= getattr(import_module(module.name), "TABLES", {})
    return tables


def pages_with_tables() -> list[Path]:
    """README.md and the pages below docs/ and src/ that show a table, of the checkout that one works in."""
    pages = (Path("README.md"), *sorted(Path("docs").rglob("*.md")), *sorted(Path("src").rglob("*.md")))
    return [page for page in pages if page.is_file() and OPENING in page.read_text(encoding="utf-8")]


def render(page: Path, results: Path, tables: Tables) -> str:
    """The text of a page with every table made anew; raises InputError for a table that is not known, or not closed."""

    def section(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in tables:
            raise InputError(f"{page}: table {name!r} is unknown, the tables are {', '.join(tables)}")
        file, show = tables[name]
        result = read_result(results / file, (), f"{page} shows it as table {name!r}")
        with reading(results / file):
            table = show(result)
        if not table.rows:
            raise InputError(f"{results / file}: holds no row of table {name!r}, which {page} shows")
        return f"<!-- table: {name} -->\n{table.markdown()}\n<!-- end -->"

    try:
        text = page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{page}: expected a Markdown page in UTF-8 ({error})") from None
    if OPENING in (outside := SECTION.sub("", text)):
        line = next(line for line in outside.splitlines() if OPENING in line)
        raise InputError(f"{page}: {line!r} opens a section that no <!-- end --> closes before the next one")
    return SECTION.sub(section, text)
