"""The tables of README and docs are those of the result files."""

from pathlib import Path

import pytest

from channelvq.errors import InputError
from channelvq.experiments.tables import SECTION, TABLES, render

ROOT = Path(__file__).parents[2]
PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if SECTION.search(p.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_the_stored_results(page: Path) -> None:
    assert render(page, ROOT / "results") == page.read_text()


def test_every_table_is_shown_somewhere() -> None:
    shown = {match["name"] for page in PAGES for match in SECTION.finditer(page.read_text())}
    assert shown == set(TABLES)


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("a\n<!-- table: nothing -->\n<!-- end -->\n")
    with pytest.raises(InputError, match="'nothing' is unknown"):
        render(tmp_path / "page.md", ROOT / "results")
