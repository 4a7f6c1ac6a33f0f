"""Compilation, memory format and trackers: switches that leave the result of a run as it is."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from channelvq.errors import InputError
from channelvq.train import launch, run
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.run import load_tokenizer_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

TINY = (
    "model.image_size=32", "model.latent_channels=8", "model.network.base_channels=8", "model.network.stem=2",
    "model.quantizer.codebook_size=32", "data.validation_images=8", "objective.start_images=32",
    "train.batch_size=4", "train.log_every=1", "train.device=cpu", "train.ema=0.9",
)  # fmt: skip


def recipe(folder: Path, *overrides: str) -> TokenizerRecipe:
    return load_tokenizer_recipe("small/smoke", [*TINY, f"train.output_dir={folder}", *overrides])


def fit(config: TokenizerRecipe) -> dict[str, float] | None:
    return Engine(TokenizerTask(config), config.train, config).fit()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
def test_compiled_networks_train_as_others_and_keep_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of torch.compile but the compiler, which takes minutes; with the adaptive weight's second backward pass.
    monkeypatch.setattr(launch, "compile_networks", partial(launch.compile_networks, backend="aot_eager"))
    settings = ("train.steps=2", "objective.adversarial={base_channels: 8}")
    for name, switch in (("plain", ()), ("compiled", ("train.compile=true",))):
        torch._dynamo.reset()
        config = recipe(tmp_path / name, *settings, *switch)
        engine = Engine(task := TokenizerTask(config), config.train, config)
        assert (task.tokenizer.decoder._compiled_call_impl is not None) == (name == "compiled")
        engine.fit()
    plain, compiled = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, atol=1e-5, rtol=1e-4)


def test_channels_last_reaches_the_convolutions(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=1", "train.channels_last=true")
    engine = Engine(task := TokenizerTask(config), config.train, config)
    assert task.tokenizer.decoder.last_weight.is_contiguous(memory_format=torch.channels_last)
    seen: list[bool] = []
    task.tokenizer.encoder.register_forward_pre_hook(
        lambda module, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    engine.step(next(task.batches(0, 0, 1)), 0)
    assert seen == [True]


def test_a_tracker_gets_the_figures_of_metrics_jsonl(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(recipe(tmp_path, "train.steps=3", "train.trackers=[tensorboard]"))
    (folder,) = (tmp_path / "trackers").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    wanted = [(line["step"], line["pixel"]) for line in read_metrics(tmp_path) if line["kind"] == "train"]
    assert [(e.step, pytest.approx(e.value, rel=1e-5)) for e in events.Scalars("train/pixel")] == wanted
    assert [e.step for e in events.Scalars("evaluate/psnr_8")] == [3]


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "trackio" else found(name, *a))
    with pytest.raises(InputError, match=r"train\.trackers: trackio is not installed; pip install trackio"):
        fit(recipe(tmp_path, "train.steps=1", "train.trackers=[trackio]"))
    # Before the task as well, which may draw and tokenize for minutes.
    monkeypatch.setattr(run, "TokenizerTask", lambda recipe: pytest.fail("the task was made"))
    with pytest.raises(InputError, match=r"trackio is not installed"):
        run.train(recipe(tmp_path, "train.steps=1", "train.trackers=[trackio]"))
    with pytest.raises(InputError, match=r"train\.trackers\.0: Input should be 'tensorboard', 'trackio' or 'wandb'"):
        recipe(tmp_path, "train.trackers=[tensorbord]")
