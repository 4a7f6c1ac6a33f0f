"""Training by low-rank additions: they begin at nothing, are summed into what is saved, and change nothing else."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from channelvq import CAR, CVQTokenizer
from channelvq.car.config import CARConfig
from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.errors import InputError
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig
from channelvq.train.car_task import CARRecipe
from channelvq.train.engine import Engine
from channelvq.train.lora import LoRAConfig, add_low_rank, merged, trained_of
from channelvq.train.plan import Machine, plan
from channelvq.train.run import load_recipe

RANK = 3
BACKBONES = {
    "qwen3": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2},
}
PROMPTS = ["a red square", "two dots"]


def generator(kind: str) -> CAR:
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    torch.manual_seed(0)
    tokenizer = CVQTokenizer(CVQConfig(32, 8, network=network, quantizer=PlainConfig(codebook_size=32))).eval()
    with torch.no_grad():
        tokenizer.quantizer.codes().normal_()
    text = TextTokenizer(train_bpe(PROMPTS, 300))
    return CAR(CARConfig(backbone=BACKBONES[kind], max_text_tokens=64), tokenizer, text).double().eval()


def logits(car: CAR) -> torch.Tensor:
    text = car.text.encode(PROMPTS, 64)
    with torch.no_grad():
        return car(text.ids, text.mask, torch.arange(16).reshape(2, 8)).logits


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")  # peft corrects itself for GPT-2
def test_additions_begin_at_nothing_and_are_summed_into_the_weights(kind: str) -> None:
    car = generator(kind)
    before, names = logits(car), set(car.state_dict())
    add_low_rank(car.backbone, LoRAConfig(RANK, 6.0), torch.Generator().manual_seed(0))
    assert torch.equal(logits(car), before)
    added = list(trained_of(car.backbone))
    assert {min(weight.shape) for weight in added} == {RANK}
    for weight in added:
        weight.data.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(weight.numel()))
    after, whole = logits(car), merged(car)
    assert (after - before).abs().max() > 0.1
    assert set(whole.state_dict()) == names
    assert torch.allclose(logits(whole.double().eval()), after, rtol=0, atol=2e-6)  # merged weights are float32
    assert merged(whole) is whole


def test_additions_are_drawn_by_the_seed_and_leave_the_global_generator() -> None:
    torch.manual_seed(5)
    drawn, told = [], []
    for seed in (1, 1, 2):
        car = generator("qwen3")
        state = torch.get_rng_state()
        add_low_rank(car.backbone, LoRAConfig(RANK), torch.Generator().manual_seed(seed))
        told.append(torch.equal(torch.get_rng_state(), state))
        drawn.append(torch.cat([weight.flatten() for weight in trained_of(car.backbone)]))
    assert all(told)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CARRecipe:
    """Four steps, two of them of stage II, from a saved generator."""
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    generator("qwen3").float().save_pretrained(tmp_path / "start")
    changes = (
        "tokenizer=start_from", f"objective.start_from={tmp_path / 'start'}", "objective.lm_steps=0",
        "objective.stage1_steps=2", f"objective.lora.rank={RANK}", "objective.train_images=16", "train.steps=4",
        "train.batch_size=8", "train.compile=false", "train.precision=no", "train.device=cpu", "train.warmup_steps=0",
        "train.evaluate_every=100", "train.checkpoint_every=1", "train.log_every=1", "model.max_text_tokens=64",
        "data.validation_images=4", "data.sources.scenes.sprites=shapes", f"train.output_dir={tmp_path / 'run'}",
        "model.backbone={hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}",
    )  # fmt: skip
    return load_recipe("small/scenes-car", changes, of=CARRecipe)


def fit(recipe: CARRecipe) -> dict[str, torch.Tensor]:
    assert Engine(recipe.build(), recipe.train, recipe).fit() is not None
    return load_file(Path(recipe.train.output_dir) / "final/model.safetensors")


def test_a_run_changes_the_layers_by_low_rank_alone_and_resumes(recipe: CARRecipe, tmp_path: Path) -> None:
    start, end = load_file(tmp_path / "start/model.safetensors"), fit(recipe)
    assert set(start) == set(end)
    for name, weight in start.items():
        change = end[name] - weight
        if name.startswith("backbone.layers") and weight.ndim == 2:
            values = torch.linalg.svdvals(change.double())
            assert values[0] > 1e-6, name
            assert values[RANK] < 1e-3 * values[0], name
        elif name.startswith("backbone."):
            assert not change.any(), name
        elif name.startswith("head."):
            assert change.any()
    assert CAR.from_pretrained(tmp_path / "run/final").generate("a circle", seed=0).ids.shape == (1, 8)
    for step in (3, 4):  # as if it had been killed after two
        folder = tmp_path / f"run/checkpoints/step-{step:08d}"
        if folder.exists():
            folder.rename(tmp_path / folder.name)
    again = fit(replace(recipe, train=replace(recipe.train, resume=True)))
    assert all(torch.equal(again[name], weight) for name, weight in end.items())


def test_settings_that_do_not_go_together_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in ("objective.lm_steps=5", "objective.muon_learning_rate=1e-3"):
        with pytest.raises(InputError, match=r"objective\.lora leaves the backbone as it is"):
            load_recipe("paper/car-4b", ("objective.lora={}", setting))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"channelvq\[lora\]"):
        add_low_rank(generator("qwen3").backbone, LoRAConfig(), torch.Generator())


def test_its_plan_has_no_gradients_of_the_backbone() -> None:
    all_of_it, low = (
        plan("paper/car-4b", load_recipe("paper/car-4b", changes), Machine())
        for changes in ((), ("objective.lora.rank=16",))
    )
    trained = sum(part.parameters for part in low.parts if part.trained)
    assert low.memory["optimizer"] == 8 * trained / 8
    assert low.memory["optimizer"] < 0.05 * all_of_it.memory["optimizer"]
    assert 0.66 < low.gpu_hours / all_of_it.gpu_hours < 0.69
