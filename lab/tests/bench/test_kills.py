"""The drill of kills sees what it is to see: a killed call, a file that is another, one that is left over."""

import json
import signal
from pathlib import Path

import pytest

from lab.bench.kill_world import compared
from lab.bench.kills import call, shown

PLAN = ["plan", "small/smoke", "--json", "out/plan.json"]


def test_a_command_is_killed_before_an_operation_and_can_be_given_again(tmp_path: Path) -> None:
    world = tmp_path / "world"
    for name in ("cache", "home", "tmp"):
        (world / name).mkdir(parents=True)
    whole = call(PLAN, world)
    assert whole.code == 0, whole.text
    wanted = compared(world)
    assert "out/plan.json" in wanted
    (world / "out/plan.json").unlink()
    assert call(PLAN, world, kill_at=whole.changes).code == -signal.SIGKILL
    assert call(PLAN, world, kill_after=0.0).code == -signal.SIGKILL
    assert call(PLAN, world).code == 0
    assert wanted.items() <= compared(world).items()


def test_times_are_not_compared_and_everything_else_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    def digests(**figures: object) -> dict[str, str]:
        path.write_text(json.dumps({"step": 1, "images_per_second": 3} | figures) + "\n")
        return compared(tmp_path)

    first = digests()
    assert digests(images_per_second=4, seconds=2) == first
    assert digests(step=2) != first
    digests()
    (tmp_path / ".b.abcdefgh").mkdir()
    assert compared(tmp_path).keys() - first.keys() == {".b.abcdefgh/"}


def test_the_table_adds_up() -> None:
    row = {"moments": 2, "operations": 1, "equal": 3, "swept": 2, "faults": []}
    table = shown({"protocol": {"kills": "SIGKILL"}, "records": [{"command": "a", **row}, {"command": "b", **row}]})
    assert table.rows[-1] == ["all", "4", "2", "6", "4"]


@pytest.mark.parametrize("words", [["plan", "no/such"], ["no-such-command"]])
def test_a_refused_command_has_the_exit_code_of_one(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "world").mkdir()
    assert call(words, tmp_path / "world").code == 2
