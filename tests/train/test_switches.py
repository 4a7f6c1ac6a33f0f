"""Compilation, memory format and trackers: switches that leave the result of a run as it is."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train import runs
from tests.train.runs import fit

from channelvq.car.backbone import SHORT, build_backbone, run_backbone, settings_of, use_plain_attention
from channelvq.car.model import CAR
from channelvq.errors import InputError
from channelvq.train import launch, run, tokenizer_task
from channelvq.train.car_task import COMPILED_WIDTHS, CARRecipe, CARTask
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask


def recipe(folder: Path, *overrides: str) -> TokenizerRecipe:
    return runs.recipe(folder, "data.validation_images=8", *overrides)


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


@pytest.mark.parametrize(
    ("precision", "speedup", "said"), [("bf16", 0.5, True), ("bf16", 5, False), ("no", 0.5, False)]
)
def test_a_run_in_slow_bfloat16_is_told(
    precision: str, speedup: float, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(launch, "bfloat16_speedup", lambda: speedup)
    fit(recipe(tmp_path / "run", "train.steps=1", f"train.precision={precision}"))
    out = " ".join(capsys.readouterr().out.split())
    assert ("takes 2.0 times as long" in out) == ("train.precision=no" in out) == said


@pytest.mark.parametrize(("speedup", "used"), [(0.5, "no"), (5, "bf16")])
def test_auto_is_the_precision_that_is_faster_here(
    speedup: float, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "bfloat16_speedup", lambda: speedup)
    weights = {}
    for name, precision in (("auto", "auto"), ("said", used), ("other", {"no": "bf16", "bf16": "no"}[used])):
        fit(recipe(tmp_path / name, "train.steps=2", "train.device=cpu", f"train.precision={precision}"))
        weights[name] = (tmp_path / name / "final/model.safetensors").read_bytes()
    assert weights["auto"] == weights["said"] != weights["other"]
    assert f"train.precision auto: {used} on this machine" in " ".join(capsys.readouterr().out.split())


@pytest.fixture
def generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a tiny generator on a tokenizer in tmp_path."""
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    config = recipe(tmp_path / "tokenizer", "train.steps=1")
    fit(config)
    return [
        f"tokenizer={tmp_path}/tokenizer/final", "data.sources.scenes.sprites=shapes", "data.validation_images=4",
        "objective.train_images=16", "objective.text_vocab_size=300", "objective.lm_steps=1",
        "objective.stage1_steps=1", "model.max_text_tokens=64", "model.backbone.hidden_size=32",
        "model.backbone.num_hidden_layers=2", "model.backbone.num_attention_heads=2", "train.device=cpu",
        "train.precision=no", "train.batch_size=4", "train.steps=4", "train.warmup_steps=1", "train.log_every=1",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_generator_trains_as_another_and_is_evaluated_uncompiled(
    generator: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "compile_networks", partial(launch.compile_networks, backend="aot_eager"))
    compiled_calls: list[bool] = []
    draw = CARTask._samples

    def samples(self: CARTask, car: CAR, path: Path) -> None:
        compiled_calls.append(torch.compiler.is_compiling() or torch._dynamo.eval_frame._stance.stance != "force_eager")
        draw(self, car, path)

    monkeypatch.setattr(CARTask, "_samples", samples)
    for name in ("false", "true"):
        torch._dynamo.reset()
        config = load_recipe(
            "small/scenes-car",
            [*generator, f"train.compile={name}", f"train.output_dir={tmp_path / name}"],
            of=CARRecipe,
        )
        Engine(CARTask(config), config.train, config).fit()
    assert compiled_calls == [False, False]
    plain, compiled = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("false", "true"))
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, atol=1e-5, rtol=1e-4)


def test_a_missing_compiler_is_named_before_images_are_tokenized(
    generator: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_recipe("small/scenes-car", [*generator, f"train.output_dir={tmp_path}/run"], of=CARRecipe)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"train\.compile=true: .* C\+\+ compiler"):
        run.train(config)
    assert not (tmp_path / "cache" / "ids").exists()


def test_the_text_of_a_compiled_generator_has_few_widths(generator: list[str], tmp_path: Path) -> None:
    config = load_recipe("small/scenes-car", [*generator, f"train.output_dir={tmp_path}/run"], of=CARRecipe)
    task = CARTask(config)
    text, _ = task._split(next(task.batches(0, 0, 1)))
    assert text.shape[1] % COMPILED_WIDTHS == 0
    assert ((text >= 0).sum(1) > text.shape[1] - COMPILED_WIDTHS).any()


@pytest.mark.parametrize(("positions", "kind"), [(SHORT, "eager"), (SHORT + 1, "sdpa")])
def test_short_sequences_train_with_plain_attention(positions: int, kind: str) -> None:
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = build_backbone(settings, 300, torch.Generator().manual_seed(0))
    inputs = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, :3] = False
    before = run_backbone(model, inputs, mask)
    use_plain_attention(model, positions)
    assert model.config._attn_implementation == kind
    assert "attn_implementation" not in str(settings_of(model.config))
    torch.testing.assert_close(run_backbone(model, inputs, mask)[mask], before[mask], atol=1e-5, rtol=1e-5)


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
    monkeypatch.setattr(tokenizer_task, "TokenizerTask", lambda recipe: pytest.fail("the task was made"))
    with pytest.raises(InputError, match=r"trackio is not installed"):
        run.train(recipe(tmp_path, "train.steps=1", "train.trackers=[trackio]"))
    with pytest.raises(InputError, match=r"train\.trackers\.0: Input should be 'tensorboard', 'trackio' or 'wandb'"):
        recipe(tmp_path, "train.trackers=[tensorbord]")
