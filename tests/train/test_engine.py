"""The training loop: it learns, and a run that was interrupted ends equal to the bit to one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.runs import TINY, StopAt, assert_equal, everything, fit, recipe, resumed

from channelvq import CVQTokenizer
from channelvq.config import to_dict
from channelvq.errors import DivergedError, InputError
from channelvq.files import write_sums
from channelvq.nested import NestedConfig
from channelvq.train.checkpoint import checkpoints
from channelvq.train.engine import Engine, read_metrics, schedule, training_seconds
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

LONG = ("steps", "evaluate_every", "checkpoint_every")


SIZES = ("model.resampler.width=16", "sizes=[[32, 32], [48, 32], [36, 64]]")


@pytest.mark.parametrize("extra", [(), ("train.precision=bf16", "objective.start_step=2"), SIZES])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, extra: tuple[str, ...]) -> None:
    settings = ("train.steps=8", "train.checkpoint_every=3", "train.warmup_steps=2", "nested.alpha=0.5", *extra)
    whole = recipe(tmp_path / "whole", *settings)
    figures = fit(whole)
    broken = recipe(tmp_path / "broken", *settings)
    task = StopAt(broken)
    task.at = 5  # two steps after the last checkpoint
    with pytest.raises(KeyboardInterrupt):
        Engine(task, broken.train, broken).fit()
    resumed = replace(broken, train=replace(broken.train, resume=True))
    assert fit(resumed) == figures
    assert_equal(everything(tmp_path / "broken"), everything(tmp_path / "whole"))
    assert len(everything(tmp_path / "whole")) >= 4
    written = [path for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in written} == {(tmp_path / "whole/metrics.jsonl").stat().st_mode}
    final = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "broken")]
    assert_equal(final[0], final[1])
    fields = ("step", "pixel", "codebook", "psnr")
    lines = [[{k: r.get(k) for k in fields} for r in read_metrics(tmp_path / n)] for n in ("whole", "broken")]
    assert lines[0] == lines[1]


def test_twenty_steps_lower_the_loss_and_leave_a_loadable_tokenizer(tmp_path: Path) -> None:
    config = recipe(
        tmp_path,
        "train.steps=20",
        "train.learning_rate=1e-3",
        "train.batch_size=8",
        "train.evaluate_every=1",
        "train.ema=0",
    )
    figures = fit(config)
    lines = read_metrics(tmp_path)
    assert len([line for line in lines if line["kind"] == "train"]) == 20
    held_out = [line["psnr_8"] for line in lines if line["kind"] == "evaluate"]
    assert held_out[-1] > held_out[0] + 1.0
    assert figures is not None
    assert {"use", "perplexity", "psnr_8"} <= figures.keys()
    tokenizer = CVQTokenizer.from_pretrained(tmp_path / "final")
    assert tokenizer.config == config.model
    assert list((tmp_path / "samples").glob("*.png"))
    assert to_dict(load_recipe(tmp_path / "config.yaml", of=TokenizerRecipe)) == to_dict(config)


def test_moving_average_is_saved_not_the_raw_weights(tmp_path: Path) -> None:
    fit(recipe(tmp_path, "train.steps=6", "train.learning_rate=1e-2"))
    final = load_file(tmp_path / "final" / "model.safetensors")
    raw = load_file(sorted((tmp_path / "checkpoints").glob("step-*"))[-1] / "model.safetensors")
    assert final.keys() == raw.keys()
    name = "decoder.layers.0.weight"
    assert not torch.equal(final[name], raw[name])
    assert bool(final["quantizer.quantizer.started"])


def test_a_run_is_not_overwritten_and_a_finished_one_is_not_repeated(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=2", "train.checkpoint_every=1")
    fit(config)
    with pytest.raises(InputError, match=r"already holds checkpoints.*resume=true"):
        fit(config)
    before = (tmp_path / "metrics.jsonl").read_text()
    fit(replace(config, train=replace(config.train, resume=True)))
    assert (tmp_path / "metrics.jsonl").read_text() == before
    written = (tmp_path / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"has already done 2 steps, train\.steps is 1: give 2 or more"):
        fit(resumed(config, steps=1))
    assert (tmp_path / "config.yaml").read_text() == written


def test_another_thread_count_is_said(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=1")
    fit(config)
    newest = tmp_path / "checkpoints" / "step-00000001" / "progress.json"
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"threads": 77}))
    write_sums(newest.parent)
    with pytest.warns(UserWarning, match="written with 77 threads"):
        fit(replace(config, train=replace(config.train, resume=True)))


def test_a_loss_that_is_not_finite_stops_with_its_name(tmp_path: Path) -> None:
    class Broken(TokenizerTask):
        def losses(self, name, models, batch, step, rank):  # type: ignore[no-untyped-def]
            losses = super().losses(name, models, batch, step, rank)
            if step == 2:
                losses.terms["pixel"] = losses.terms["pixel"] * float("nan")
            return losses

    config = recipe(tmp_path, "train.steps=4", "train.checkpoint_every=1")
    with pytest.raises(DivergedError, match=r"'pixel' is nan at step 3.*step-00000002"):
        Engine(Broken(config), config.train, config).fit()


@pytest.mark.parametrize("clip", ["1.0", "null"])
def test_a_gradient_that_is_not_finite_never_gets_into_a_checkpoint(clip: str, tmp_path: Path) -> None:
    class Broken(TokenizerTask):
        def losses(self, name, models, batch, step, rank):  # type: ignore[no-untyped-def]
            losses = super().losses(name, models, batch, step, rank)
            if step == 2:  # 0, whose root has no derivative
                losses.terms["root"] = next(models["tokenizer"].parameters()).mul(0).sum().sqrt()
            return losses

    config = recipe(tmp_path, "train.steps=4", "train.checkpoint_every=1", f"train.clip_norm={clip}")
    with pytest.raises(DivergedError, match=r"gradient of tokenizer is nan at step 3.*step-00000002"):
        Engine(Broken(config), config.train, config).fit()
    assert checkpoints(tmp_path)[-1].name == "step-00000002"


def test_a_network_that_diverges_is_reported_with_its_step(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=30", "train.learning_rate=1e30", "train.warmup_steps=0")
    with pytest.raises(DivergedError, match=r"at step \d+; last good checkpoint: none yet"):
        fit(config)


def test_going_on_with_other_settings_is_refused_and_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=2")
    fit(config)
    before = (tmp_path / "config.yaml").read_text()
    other = replace(resumed(config, learning_rate=0.5), nested=NestedConfig(alpha=0.0))
    with pytest.raises(InputError, match=r"nested\.alpha: 0\.25 -> 0\.0\n.*train\.learning_rate: 0\.001 -> 0\.5"):
        fit(other)
    assert (tmp_path / "config.yaml").read_text() == before
    with pytest.raises(InputError, match="already done 2 steps"):
        fit(resumed(config, steps=1))
    assert fit(resumed(config, steps=3, log_every=7)) is not None
    assert read_metrics(tmp_path)[-1]["step"] == 3


def test_what_cannot_work_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="start_step 5 must be below"):
        recipe(tmp_path, "objective.start_step=5", "train.steps=5")
    with pytest.raises(InputError, match=r"train\.betas"):
        recipe(tmp_path, "train.betas=[2,3]")


@pytest.mark.parametrize(("asked", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_as_it_does_in_a_shell(asked: signal.Signals, code: int, tmp_path: Path) -> None:
    settings = (f"train.output_dir={tmp_path}", *(f"train.{key}=100000" for key in LONG))
    command = [sys.executable, "-m", "channelvq", "train", "small/smoke", *TINY, *settings]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "step 5:" in line:
                process.send_signal(asked)
                break
        rest = process.stdout.read()
    assert process.returncode == code
    assert f"stopped by {asked.name}" in rest
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 1


KILLED = (
    "train.steps=40", "train.checkpoint_every=4", "train.warmup_steps=3", "train.evaluate_every=100",
    "nested.alpha=0.5", "train.precision=bf16", "train.threads=1",
    "objective.adversarial={start_step: 1, ramp_steps: 3, base_channels: 8, lecam: 0.1}",
)  # fmt: skip


def begin(ranks: int, folder: Path, *more: str) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "channelvq", "train", "small/smoke", *TINY, *KILLED,
               f"train.output_dir={folder}", *more]  # fmt: skip
    # A session of its own, so that the launcher and every rank can be killed at once.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
@pytest.mark.parametrize("ranks", [1, 2])
def test_kill_9_between_checkpoints_loses_nothing(ranks: int, tmp_path: Path) -> None:
    """Two optimizers, moving averages, nested dropout: all state is that of the uninterrupted run, to the bit.

    A gradient scaler exists on CUDA with fp16 alone; Accelerate's checkpoint holds it (scaler.pt) as it does the rest.
    """
    with begin(ranks, tmp_path / "killed") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "train step 6:" in line:  # the last checkpoint is that of step 4
                os.killpg(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "final").exists()
    runs = [begin(ranks, tmp_path / "killed", "train.resume=true"), begin(ranks, tmp_path / "whole")]
    for run in runs:
        output = run.communicate(timeout=200)[0]
        assert run.returncode == 0, output
    killed, whole = everything(tmp_path / "killed"), everything(tmp_path / "whole")
    assert whole.keys() >= {
        "model.safetensors", "model_1.safetensors", "optimizer.bin", "optimizer_1.bin",
        "schedules.json", "average-tokenizer.safetensors", "average-discriminator.safetensors",
        *(f"random-states-{rank}.safetensors" for rank in range(ranks)),
    }  # fmt: skip
    assert_equal(killed, whole)
    final = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("killed", "whole")]
    assert_equal(final[0], final[1])


@pytest.mark.parametrize("setting", ["train.channels_last=true", "train.trackers=[tensorboard]"])
def test_a_switch_leaves_the_run_resumable_to_the_bit(setting: str, tmp_path: Path) -> None:
    if "tensorboard" in setting:
        pytest.importorskip("tensorboard")
    config = recipe(tmp_path / "whole", "train.steps=4", "train.checkpoint_every=2", setting)
    fit(config)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for name in ("checkpoints/step-00000004", "final"):
        shutil.rmtree(tmp_path / "parts" / name)
    fit(resumed(config, output_dir=str(tmp_path / "parts")))
    assert_equal(everything(tmp_path / "parts"), everything(tmp_path / "whole"))
    plain = recipe(tmp_path / "plain", "train.steps=4")
    fit(plain)
    for name, weight in load_file(tmp_path / "plain/final/model.safetensors").items():
        torch.testing.assert_close(
            load_file(tmp_path / "whole/final/model.safetensors")[name], weight, atol=1e-4, rtol=0
        )


def test_resuming_where_there_is_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(recipe(tmp_path / "none", "train.steps=1", "train.resume=true"))
    assert f"{tmp_path / 'none'} holds no checkpoint: training begins at step 1" in capsys.readouterr().out


def test_training_seconds_add_up_over_sittings(tmp_path: Path) -> None:
    class Slow(TokenizerTask):
        def losses(self, name, models, batch, step, part):  # type: ignore[no-untyped-def]
            time.sleep(0.05)
            return super().losses(name, models, batch, step, part)

        def evaluate(self, models, run_dir, step):  # type: ignore[no-untyped-def]
            time.sleep(1.0)  # does not count
            return super().evaluate(models, run_dir, step)

    config = recipe(tmp_path, "train.steps=4", "train.log_every=100")
    Engine(Slow(config), config.train, config).fit()
    first = training_seconds(tmp_path, 4)
    assert first >= 0.2
    more = resumed(config, steps=6)
    engine = Engine(Slow(more), more.train, more)
    engine.fit()
    assert training_seconds(tmp_path, 4) == pytest.approx(engine.seconds)
    assert engine.seconds >= first + 0.1


def test_schedule_warms_up_and_ends_at_its_ratio(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=110", "train.warmup_steps=10", "train.final_lr_ratio=0.1").train
    values = [schedule(config, step) for step in range(111)]
    assert values[0] == pytest.approx(0.1)
    assert values[10] == 1.0
    assert values[60] == pytest.approx(0.55)
    assert values[110] == pytest.approx(0.1)
    assert max(values) == 1.0
