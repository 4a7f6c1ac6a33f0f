"""`python -m lab bench run`: what a checkpoint tells of its run, and checkpoints that do not tell it."""

import json
from pathlib import Path
from typing import Any

import pytest

from channelvq import config
from channelvq.errors import InputError
from channelvq.train.run import load_recipe
from lab.bench.reached import reached

STATE = {"step": 2, "seconds": 4.0, "ranks": 1, "peak_memory": 2**30, "device": "cpu"}


def write(run: Path, state: Any) -> None:
    folder = run / "checkpoints" / "step-00000002"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "progress.json").write_text(json.dumps(state))
    config.save(load_recipe("small/smoke"), run / "config.yaml")


def test_figures_of_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, STATE)
    found = reached(tmp_path, 1.0)
    assert found["images_per_second"] == found["images"] / 4
    assert found["peak_memory"] == 1.0
    write(tmp_path, {key: value for key, value in STATE.items() if key != "peak_memory"})
    assert reached(tmp_path, 1.0)["peak_memory"] is None


@pytest.mark.parametrize("name", ["ranks", "seconds", "peak_memory", "step"])
@pytest.mark.parametrize("value", [None, "x", [1], -1, 0])
def test_what_a_checkpoint_does_not_tell_is_named(tmp_path: Path, name: str, value: Any) -> None:
    if (name, value) in (("peak_memory", None), ("step", 0), ("step", -1)):
        return
    write(tmp_path, STATE | {name: value})
    with pytest.raises(InputError, match=rf"step-00000002: .*{name}|step-00000002: cannot be read"):
        reached(tmp_path, 1.0)
    write(tmp_path, {key: each for key, each in STATE.items() if key != name})
    if name != "peak_memory":
        with pytest.raises(InputError, match=name):
            reached(tmp_path, 1.0)


def test_a_state_of_another_shape_is_named(tmp_path: Path) -> None:
    for state in ([], 3, "x"):
        write(tmp_path, state)
        with pytest.raises(InputError, match="step-00000002: cannot be read"):
            reached(tmp_path, 1.0)
