"""Checkpoints that are written while training goes on: the same to the bit, none by half, no error lost."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.train.runs import StopAt, assert_equal, everything, fit, recipe, resumed

from channelvq.errors import InputError
from channelvq.train import checkpoint as checkpoint_module
from channelvq.train.background import Background
from channelvq.train.checkpoint import checkpoints
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.plain import Plain
from channelvq.train.tokenizer_task import TokenizerTask

ASYNC = "train.checkpoint_async=true"
SETTINGS = (
    "train.steps=6", "train.checkpoint_every=2", "train.warmup_steps=2", "nested.alpha=0.5",
    "objective.adversarial={base_channels: 8, layers: 1, start_step: 0}",
)  # fmt: skip


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Large parts are written only once this is set: by then training has gone on."""
    event, write = threading.Event(), Plain.write

    def late(self: Plain, folder: Path) -> None:
        event.wait(20)
        write(self, folder)

    monkeypatch.setattr(Plain, "write", late)
    return event


class SetAt(StopAt):
    """Lets what is slow go on at the step `set_at`."""

    set_at = 0
    event: threading.Event

    def losses(self, name, models, batch, step, rank):  # type: ignore[no-untyped-def]
        if step == self.set_at:
            self.event.set()
        return super().losses(name, models, batch, step, rank)


def test_files_are_those_that_are_written_at_the_step(tmp_path: Path, slow: threading.Event) -> None:
    """Training changes all of the weights between the step and the writing."""
    slow.set()
    fit(recipe(tmp_path / "at once", *SETTINGS))
    slow.clear()
    config = recipe(tmp_path / "beside", *SETTINGS, ASYNC)
    task = SetAt(config)
    task.at, task.set_at, task.event = -1, 3, slow
    Engine(task, config.train, config).fit()
    for step in ("step-00000004", "step-00000006"):
        one, two = (tmp_path / name / "checkpoints" / step for name in ("at once", "beside"))
        files = sorted(path.name for path in one.iterdir())
        assert files == sorted(path.name for path in two.iterdir())
        assert len(files) == 10
        for name in set(files) - {"progress.json", "SHA256SUMS"}:
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
            assert (one / name).stat().st_mode == (two / name).stat().st_mode


def test_training_goes_on_and_what_is_in_work_when_it_dies_is_still_written(
    tmp_path: Path, slow: threading.Event
) -> None:
    whole = recipe(tmp_path / "whole", *SETTINGS)
    slow.set()
    figures = fit(whole)
    slow.clear()
    broken = recipe(tmp_path / "broken", *SETTINGS, ASYNC)
    task = SetAt(broken)
    task.at, task.set_at, task.event = 3, 3, slow
    with pytest.raises(KeyboardInterrupt):
        Engine(task, broken.train, broken).fit()
    assert [line["step"] for line in read_metrics(tmp_path / "broken")] == [1, 2, 3]
    assert names(tmp_path / "broken") == ["step-00000002"]
    assert fit(replace(broken, train=replace(broken.train, resume=True))) == figures
    assert_equal(everything(tmp_path / "broken"), everything(tmp_path / "whole"))


def test_the_next_one_waits_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, at_work, most = Plain.write, [0], [0]

    def counted(self: Plain, folder: Path) -> None:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        time.sleep(0.1)  # longer than a step
        write(self, folder)
        at_work[0] -= 1

    monkeypatch.setattr(Plain, "write", counted)
    config = recipe(tmp_path, "train.steps=5", "train.checkpoint_every=1", "train.keep_checkpoints=2", ASYNC)
    assert fit(config) is not None
    assert (most, names(tmp_path)) == ([1], ["step-00000004", "step-00000005"])


def test_evaluation_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, evaluate, found = Plain.write, Engine._evaluate, []

    def late(self: Plain, folder: Path) -> None:
        time.sleep(0.1)
        write(self, folder)

    monkeypatch.setattr(Plain, "write", late)
    monkeypatch.setattr(Engine, "_evaluate", lambda *given: (found.append(names(tmp_path)), evaluate(*given))[1])
    fit(recipe(tmp_path, "train.steps=2", "train.checkpoint_every=1", ASYNC))
    assert found == [["step-00000001"]]


def test_an_error_stops_the_training_with_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Plain.write

    def full(self: Plain, folder: Path) -> None:
        write(self, folder)
        if "step-00000002" in folder.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "optimizer.bin"))

    monkeypatch.setattr(Plain, "write", full)
    config = recipe(tmp_path, "train.steps=50", "train.checkpoint_every=1", ASYNC)
    with pytest.raises(InputError, match=r"step-00000002: cannot write optimizer.bin .*No space.*step-00000001 is"):
        fit(config)
    assert names(tmp_path) == ["step-00000001"]
    assert read_metrics(tmp_path)[-1]["step"] <= 3


def test_an_error_of_the_last_one_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder / "SHA256SUMS"))

    monkeypatch.setattr(checkpoint_module, "write_sums", broken)
    with pytest.raises(InputError, match=r"step-00000001: cannot write SHA256SUMS .*there is none of before"):
        fit(recipe(tmp_path, "train.steps=1", ASYNC))
    assert names(tmp_path) == []
    assert not (tmp_path / "final").exists()


def test_an_error_beside_another_one_does_not_hide_it() -> None:
    def fail() -> None:
        raise OSError("disk")

    def train(end: int) -> None:
        with Background() as background:
            background.start(fail)
            print(1 / end)

    with pytest.raises(ZeroDivisionError):
        train(0)
    with pytest.raises(OSError, match="disk"):
        train(1)


KILLED = """
import os, signal, sys
from pathlib import Path
from channelvq.train import plain
from tests.train.runs import fit, recipe

save = plain.torch.save

def killing(state, path):
    save(state, path)
    if "step-00000004" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)

plain.torch.save = killing
fit(recipe(Path(sys.argv[1]), *sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_killed_while_it_writes_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    settings = (*SETTINGS[:-1], ASYNC)
    figures = fit(recipe(tmp_path / "whole", *settings))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert names(tmp_path / "killed") == [".partial-step-00000004", "step-00000002"]
    assert fit(resumed(recipe(tmp_path / "killed", *settings))) == figures
    assert_equal(everything(tmp_path / "killed"), everything(tmp_path / "whole"))
    assert names(tmp_path / "killed") == ["step-00000004", "step-00000006"]


def test_a_signal_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=6", ASYNC)
    engine = Engine(TokenizerTask(config), config.train, config)
    engine.signals.received = signal.SIGTERM
    assert engine.fit() is None
    assert names(tmp_path) == ["step-00000001"]
    assert fit(resumed(config)) is not None


def test_more_ranks_than_before_have_random_states(tmp_path: Path) -> None:
    """Those that were not there begin as one that was."""
    from accelerate import Accelerator

    config = recipe(tmp_path, "train.steps=1")
    engine = Engine(TokenizerTask(config), config.train, config)
    engine.fit()

    class Third(Accelerator):
        process_index = 2  # type: ignore[assignment]

    engine.accelerator.__class__ = Third
    before = torch.get_rng_state()
    torch.manual_seed(77)
    checkpoint_module.load_checkpoint(engine.accelerator, checkpoints(tmp_path)[-1], config.train, engine.run_state)
    assert torch.equal(torch.get_rng_state(), before)
