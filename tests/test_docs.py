"""The documentation: its code runs, its commands are commands, its links lead somewhere, its site is built."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.pages import blocks, photo

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# onnx.md is run by test_onnx_export.py.
# Pages of which every block of Python is a program by itself, or goes on from the one before.
RUN = ("index.md", "guide/tutorial.md", "guide/quantizer.md", "guide/from-vector-quantize-pytorch.md",
       "guide/cvq-files.md")  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    photo().save("photo.png")
    return tmp_path


@pytest.mark.parametrize("name", RUN)
def test_the_code_of_the_guides_runs(name: str, folder: Path) -> None:
    pytest.importorskip("constriction")
    code = blocks(ROOT / "docs" / name, "python")
    assert code
    scope: dict[str, object] = {}
    for block in code:
        exec(compile(block, name, "exec"), scope)


def commands(page: Path) -> list[list[str]]:
    lines = "\n".join(blocks(page, "bash", "", "console")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("cvq ")]
    return [line[1 : line.index("|") if "|" in line else None] for line in words]


def test_every_command_of_the_pages_can_be_parsed() -> None:
    from typer.main import get_command

    from channelvq.cli import app

    group: Any = get_command(app)
    count = 0
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES):
        for words in commands(page):
            command, rest = group, words
            while hasattr(command, "get_command") and rest and not rest[0].startswith("-"):
                command, rest = command.get_command(None, rest[0]), rest[1:]
                assert command is not None, (page.name, words)
            if rest != ["--version"]:
                command.make_context("cvq", list(rest))  # raises for an option that is not there
            count += 1
    assert count >= 50


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=yaml.BaseLoader)

    def names(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [name for part in (entry.values() if isinstance(entry, dict) else entry) for name in names(part)]

    made = {"reference/settings.md", "reference/commands.md"}
    assert set(names(config["nav"])) - made == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES}


def test_every_row_of_the_faults_names_tests_that_are_there() -> None:
    faults = (ROOT / "docs/reliability.md").read_text(encoding="utf-8").split("## Kinds of faults", 1)[1]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", faults, re.MULTILINE)
    rows = [row for row in rows if row[0] != "fault"]
    assert len(rows) >= 70
    for fault, tests in rows:
        named = re.findall(r"`([\w/]*(?:\.py)?)(?:::(\w+))?`", tests)
        assert any(path or test for path, test in named) or "`make oldest`" in tests, fault
        file = Path()
        for path, test in named:
            file = ROOT / "tests" / path if path else file  # "::name": of the file before
            assert file.is_file(), (fault, path)
            assert not test or f"def {test}(" in file.read_text(), (fault, test)


def test_linked_files_exist() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\((?![a-z]+:)([^)#\s]+)[^)]*\)", text):
            made = target.endswith(("reference/settings.md", "reference/commands.md"))
            assert made or (page.parent / target).exists(), (page.name, target)


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    assert "codebook_size" in (site / "reference/settings/index.html").read_text(encoding="utf-8")
    assert "cvq data shard" in (site / "reference/commands/index.html").read_text(encoding="utf-8")
    assert "detokenize" in (site / "reference/python/index.html").read_text(encoding="utf-8")
    page = (site / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'<(?:script|link|img)[^>]*?(?:src|href)="(https?:[^"]*)"', page)
    assert not loaded, "the site loads nothing from another server"
