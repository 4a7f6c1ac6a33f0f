"""Paths and names are shown on a terminal as they are, whatever rich would make of their brackets."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from channelvq.evaluate.compare import compare
from channelvq.evaluate.geneval import report as geneval_report
from channelvq.evaluate.tables import TextTable
from channelvq.terminal import plain, terminal_table
from channelvq.train import plan
from channelvq.train.progress import Progress
from channelvq.train.run import load_recipe

NAMES = ("d[/b]/r.yaml", ":cat:.json", "y[bold]", "[red]x[/red]", "back\\", "[link=a]")


def shown(renderable: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_line_and_a_table(name: str) -> None:
    assert shown(plain(name)) == f"{name}\n"
    assert shown(terminal_table([name], [[name]], name, name)).count(name) == 4


def test_the_recipe_of_a_plan(name: str) -> None:
    found = plan.plan("x", load_recipe("small/smoke"), plan.Machine())
    assert name in shown(plan.table(replace(found, recipe=name)))


def test_a_text_table(name: str) -> None:
    assert shown(TextTable([name], [[name]], name, name).terminal()).count(name) == 4


def test_compared_files(tmp_path: Path) -> None:
    names = ["y[bold]", "[red]x[", "z[-]"]
    for each in names:
        (tmp_path / f"{each}.json").write_text(json.dumps({"protocol": {}, "records": [{"metrics": {"psnr": 2.5}}]}))
    text = shown(compare([tmp_path / f"{each}.json" for each in names]).table())
    assert all(each in text for each in names)
    folders = [tmp_path / "d[" / "b].json", tmp_path / "d[" / "[" / "b].json"]
    for path in folders:
        path.parent.mkdir(exist_ok=True)
        path.write_text((tmp_path / "z[-].json").read_text())
    text = "".join(shown(compare(folders).table()).split())  # the column is folded
    assert all("d[" in text and path.name in text for path in folders)


def test_tasks_of_a_prompt_file(name: str) -> None:
    scores = {"overall": 0.5, name: 0.5}
    result = {"generator": scores, "intervals": {"generator": {"overall": [0.4, 0.6]}}}
    assert name in shown(geneval_report.scores_by_task(result).terminal())


def test_what_a_run_says(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Progress(1, 0, tmp_path, active=True).say(name)
    assert capsys.readouterr().out == f"{name}\n"
