"""The tables of README and docs are those of the result files."""

from pathlib import Path

import pytest

from channelvq.errors import InputError
from channelvq.experiments.tables import SECTION, TABLES, render

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md", "docs/results.md", "docs/generator.md", "docs/training.md",
    "docs/decisions/0003-what-keeps-the-codebook-alive.md",
    "docs/decisions/0005-ibq-at-dimension-256.md",
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_the_stored_results(page: str) -> None:
    assert render(ROOT / page, ROOT / "results") == (ROOT / page).read_text()


def test_every_table_is_shown_somewhere() -> None:
    shown = {match["name"] for page in PAGES for match in SECTION.finditer((ROOT / page).read_text())}
    assert shown == set(TABLES)


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("a\n<!-- table: nothing -->\n<!-- end -->\n")
    with pytest.raises(InputError, match="'nothing' is unknown"):
        render(tmp_path / "page.md", ROOT / "results")
