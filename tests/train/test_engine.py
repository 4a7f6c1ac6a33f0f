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
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from channelvq import CVQTokenizer
from channelvq.config import to_dict
from channelvq.errors import DivergedError, InputError
from channelvq.files import write_sums
from channelvq.nested import NestedConfig
from channelvq.train import checkpoint as checkpoint_module
from channelvq.train.checkpoint import checkpoints
from channelvq.train.engine import Engine, read_metrics, schedule, training_seconds
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

TINY = (
    "model.image_size=32", "model.latent_channels=8", "model.network.base_channels=8", "model.network.stem=2",
    "model.quantizer.codebook_size=32", "data.validation_images=16", "objective.start_images=32",
    "train.batch_size=4", "train.log_every=1", "train.device=cpu", "train.ema=0.9",
)  # fmt: skip
LONG = ("steps", "evaluate_every", "checkpoint_every")


def recipe(folder: Path, *overrides: str) -> TokenizerRecipe:
    return load_recipe("small/smoke", [*TINY, f"train.output_dir={folder}", *overrides], of=TokenizerRecipe)


def fit(config: TokenizerRecipe) -> dict[str, float] | None:
    return Engine(TokenizerTask(config), config.train, config).fit()


class StopAt(TokenizerTask):
    """Dies in the middle of a run, as a machine does."""

    at = 0

    def losses(self, name, models, batch, step, rank):  # type: ignore[no-untyped-def]
        if step == self.at:
            raise KeyboardInterrupt
        return super().losses(name, models, batch, step, rank)


def everything(folder: Path) -> dict[str, object]:
    """Weights, moving average, optimizer, schedule and random states of the newest checkpoint."""
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    found: dict[str, object] = {}
    for path in sorted(newest.iterdir()):
        if path.suffix == ".safetensors":
            found[path.name] = load_file(path)
        elif path.suffix == ".bin":
            found[path.name] = torch.load(path, weights_only=True)
        elif path.name == "schedules.json":
            found[path.name] = json.loads(path.read_text())
    return found


def assert_equal(a: object, b: object, where: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert isinstance(b, list | tuple)
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{i}")
    elif hasattr(a, "tolist"):  # numpy's random state
        assert a.tolist() == b.tolist(), where  # type: ignore[attr-defined]
    else:
        assert a == b, where


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


def test_checkpoints_rotate_and_partial_ones_are_ignored(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=5", "train.checkpoint_every=1", "train.keep_checkpoints=2")
    fit(config)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005"]
    (tmp_path / "checkpoints" / ".partial-step-00000009").mkdir()
    assert fit(replace(config, train=replace(config.train, resume=True))) is not None


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


def resumed(config: TokenizerRecipe, **train: object) -> TokenizerRecipe:
    return replace(config, train=replace(config.train, resume=True, **train))


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


def test_every_part_of_a_checkpoint_is_needed_as_it_was_written(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=1", "train.ema=0.9")
    fit(config)
    folder = tmp_path / "checkpoints/step-00000001"
    parts = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert parts.keys() == {
        "model.safetensors", "optimizer.bin", "average-tokenizer.safetensors", "schedules.json", "progress.json",
        "random-states-0.safetensors", "SHA256SUMS",
    }  # fmt: skip
    for name, content in parts.items():
        for place in (0, len(content) // 2, len(content) - 1):
            flipped = bytes([content[place] ^ 1])
            (folder / name).write_bytes(content[:place] + flipped + content[place + 1 :])
            told = "step-00000001" if name == "SHA256SUMS" else rf"step-00000001.*{name}"
            with pytest.raises(InputError, match=told):
                fit(resumed(config, steps=2))
        (folder / name).unlink()
        with pytest.raises(InputError, match=rf"step-00000001.*{name}.*remove the folder to use the one before"):
            fit(resumed(config, steps=2))
        (folder / name).write_bytes(content)
    assert fit(resumed(config, steps=2)) is not None


def test_a_part_that_nobody_wrote_is_missed_too(tmp_path: Path) -> None:
    """Digests say that nothing has changed since; that all parts were there then, they do not."""
    config = recipe(tmp_path, "train.steps=1", "train.ema=0.9")
    fit(config)
    folder = tmp_path / "checkpoints/step-00000001"
    for name in ("schedules.json", "random-states-0.safetensors", "average-tokenizer.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        write_sums(folder)
        with pytest.raises(InputError, match=f"it lacks {name}"):
            fit(resumed(config, steps=2))
        (folder / name).write_bytes(content)


def test_a_checkpoint_of_before_there_were_digests_is_refused_with_a_reason(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=1")
    fit(config)
    (tmp_path / "checkpoints/step-00000001/SHA256SUMS").unlink()
    with pytest.raises(InputError, match="it has no SHA256SUMS: incomplete, or of a version before"):
        fit(resumed(config, steps=2))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "average-", "random-states", "progress.json"])
def test_a_full_disk_names_the_file_and_leaves_the_last_good_state(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    config = recipe(tmp_path, "train.steps=2", "train.checkpoint_every=1")
    whole = fit(config)
    assert whole is not None
    shutil.rmtree(tmp_path / "checkpoints/step-00000002")
    real, before = checkpoint_module._write, resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "checkpoints/step-00000001").iterdir()}

    def full(name: str) -> None:
        """From this file on the disk has no room."""
        if name.startswith(file):
            resource.setrlimit(resource.RLIMIT_FSIZE, (8, before[1]))

    def on_full_disk(*given: object) -> None:
        for module, writer in ((torch, "save"), (checkpoint_module, "write_weights")):
            function = getattr(module, writer)

            def watched(*args: Any, function: Any = function, **more: Any) -> object:
                full(Path(next(a for a in args if isinstance(a, str | Path))).name)
                return function(*args, **more)

            monkeypatch.setattr(module, writer, watched)
        if file == "model.safetensors":
            full(file)
        real(*given)
        full("progress.json")

    monkeypatch.setattr(checkpoint_module, "_write", on_full_disk)
    try:
        with pytest.raises(InputError, match=rf"step-00000002: cannot write {file}.*step-00000001 is whole, go on"):
            fit(resumed(config))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert {path.name: path.stat().st_size for path in (tmp_path / "checkpoints/step-00000001").iterdir()} == sizes
    monkeypatch.undo()
    assert fit(resumed(config)) == whole


def test_a_metrics_line_cut_by_a_crash_is_dropped(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=2", "train.checkpoint_every=1")
    fit(config)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('12\n{"kind": "train", "st')
    fit(resumed(config, steps=3))
    assert [line["step"] for line in read_metrics(tmp_path) if line["kind"] == "train"] == [1, 2, 3]


def test_a_run_whose_config_was_cut_short_says_how_to_go_on(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=1", "train.checkpoint_every=1")
    fit(config)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(InputError, match=r"config\.yaml is damaged .*remove it to go on"):
        fit(resumed(config, steps=2))
    (tmp_path / "config.yaml").unlink()
    fit(resumed(config, steps=2))


def test_what_cannot_work_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="start_step 5 must be below"):
        recipe(tmp_path, "objective.start_step=5", "train.steps=5")
    with pytest.raises(InputError, match=r"train\.betas"):
        recipe(tmp_path, "train.betas=[2,3]")


def test_sigterm_saves_and_ends_with_0(tmp_path: Path) -> None:
    settings = (f"train.output_dir={tmp_path}", *(f"train.{key}=100000" for key in LONG))
    command = [sys.executable, "-m", "channelvq", "train", "small/smoke", *TINY, *settings]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "step 5:" in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
    assert process.returncode == 0
    assert "stopped by SIGTERM" in rest
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
