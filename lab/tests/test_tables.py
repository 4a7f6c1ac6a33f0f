"""The tables of README and docs are those of the result files."""

import json
from pathlib import Path

import pytest

from channelvq.errors import InputError
from lab.listing import studies, study_module
from lab.studies import backbones, car_tokens
from lab.study import RecipeStudy
from lab.tables import SECTION, declared, render

ROOT = Path(__file__).parents[2]
TABLES = declared()
STUDIES = {about.result: study_module(name).STUDY for name, about in studies().items()}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "src/channelvq/lookup/HOW.md"]
PAGES = [page for page in PAGES if SECTION.search(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_the_stored_results(page: Path) -> None:
    assert render(page, ROOT / "results", TABLES) == page.read_text()


def is_whole(file: str) -> bool:
    """Whether a result is there, with all runs of its study."""
    path = ROOT / "results" / file
    runs = {result: len(study.runs) for result, study in STUDIES.items() if isinstance(study, RecipeStudy)}
    runs["car-tokens-small.json"] = len(car_tokens.keys())
    runs["backbones.json"] = len(backbones.VARIANTS)
    return path.exists() and (file not in runs or len(json.loads(path.read_text())["records"]) == runs[file])


def test_every_table_is_shown_as_soon_as_its_result_is_whole() -> None:
    shown = {match["name"] for page in PAGES for match in SECTION.finditer(page.read_text())}
    begun = {name for name, (file, _) in TABLES.items() if (ROOT / "results" / file).exists()}
    # What a study has so far may be shown; its page says what is missing.
    assert {name for name, (file, _) in TABLES.items() if is_whole(file)} <= shown <= begun


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("a\n<!-- table: nothing -->\n<!-- end -->\n")
    with pytest.raises(InputError, match="'nothing' is unknown"):
        render(tmp_path / "page.md", ROOT / "results", TABLES)


ODD = {"metrics": {"psnr": "x", "psnr_interval": 5, "nats": "x"}, "data": 1}
WRONG = (
    "", '{"protocol"', "[]", '{"protocol": {}}', '{"protocol": 3, "records": 3}', '{"protocol": {}, "records": []}',
    json.dumps({"protocol": {"n": 1}, "records": [ODD]}),
)  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_result_of_another_kind_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"<!-- table: {name} -->\n<!-- end -->\n")
    file = tmp_path / TABLES[name][0]
    with pytest.raises(InputError, match=file.name):
        render(tmp_path / "page.md", tmp_path, TABLES)
    for content in WRONG:
        file.write_text(content)
        with pytest.raises(InputError, match=file.name):
            render(tmp_path / "page.md", tmp_path, TABLES)


def test_a_section_that_is_not_closed_swallows_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- table: axis -->\nprose\n\n<!-- table: lookup -->\nold\n<!-- end -->\n")
    with pytest.raises(InputError, match=r"'<!-- table: axis -->' opens a section that no <!-- end --> closes"):
        render(page, ROOT / "results", TABLES)
