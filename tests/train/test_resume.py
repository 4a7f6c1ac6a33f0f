"""What a run shows and learns by after it was stopped and went on: curves, rates, and the schedule's new length."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.train.runs import StopAt, fit, recipe, resumed

from channelvq.data.source import Sample
from channelvq.data.stream import training_batches
from channelvq.train.engine import Engine, read_metrics, schedule
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

RATE = 1e-3


def with_rate(folder: Path, *overrides: str) -> TokenizerRecipe:
    return recipe(folder, f"train.learning_rate={RATE}", "train.warmup_steps=2", *overrides)


class Rates(TokenizerTask):
    """Notes the rate of the first optimizer at every update."""

    def __init__(self, config: TokenizerRecipe) -> None:
        super().__init__(config)
        self.seen: list[float] = []
        optimizer = next(iter(self.optimizers.values()))
        optimizer.register_step_pre_hook(lambda *_: self.seen.append(optimizer.param_groups[0]["lr"]))


def test_the_logged_rate_is_that_of_the_step(tmp_path: Path) -> None:
    config = with_rate(tmp_path, "train.steps=5")
    task = Rates(config)
    Engine(task, config.train, config).fit()
    logged = [line["learning_rate"] for line in read_metrics(tmp_path) if line["kind"] == "train"]
    assert logged == pytest.approx([RATE * schedule(config.train, step) for step in range(5)], rel=1e-5)
    assert logged == pytest.approx(task.seen, rel=1e-5)


def test_the_first_update_after_more_steps_follows_the_new_schedule(tmp_path: Path) -> None:
    fit(with_rate(tmp_path, "train.steps=4"))
    longer = with_rate(tmp_path, "train.steps=8", "train.resume=true")
    task = Rates(longer)
    Engine(task, longer.train, longer).fit()
    assert task.seen == pytest.approx([RATE * schedule(longer.train, step) for step in range(4, 8)])


def test_a_run_that_goes_on_says_what_differs_and_how_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    config = recipe(tmp_path, "train.steps=2")
    fit(config)
    ends = ["evaluating ...", f"saving {tmp_path / 'final'} ..."]
    first = capsys.readouterr().out.splitlines()
    assert [line for line in first if line in ends] == ends
    assert "other settings" not in "".join(first)
    fit(resumed(config, steps=4, log_every=3))
    changes = "train.log_every: 1 -> 3, train.steps: 2 -> 4; the learning rate falls until step 4 now"
    again = capsys.readouterr().out.splitlines()
    assert [line for line in again if "other settings" in line] == [
        f"the run goes on with other settings than before: {changes}"
    ]
    fit(resumed(config, steps=4, log_every=3))  # which has ended already
    ended = capsys.readouterr().out.splitlines()
    assert [line for line in ended if line in ends] == ends
    assert "other settings" not in "".join(ended)


def test_curves_do_not_overlap_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = with_rate(tmp_path, "train.steps=6", "train.checkpoint_every=2", "train.trackers=[tensorboard]")
    task = StopAt(config)
    task.at = 3  # of step 3 there are figures, and no checkpoint
    with pytest.raises(KeyboardInterrupt):
        Engine(task, config.train, config).fit()
    fit(replace(config, train=replace(config.train, resume=True)))
    (folder,) = (tmp_path / "trackers").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("train/pixel")] == [1, 2, 3, 4, 5, 6]


class Gray:
    """Endless gray."""

    seed = 0

    def __getitem__(self, position: int) -> Sample:
        return Sample(torch.zeros(3, 1, 1, dtype=torch.uint8), "", str(position))


def test_the_batches_of_a_long_training_are_not_held() -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        batches = training_batches(Gray(), 4, 0, 300_000)
        assert next(batches).shape == (4, 3, 1, 1)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
