"""Plans: counts that can be known otherwise, and that every paper recipe has one without memory."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from channelvq.cli import app
from channelvq.config import recipe_names
from channelvq.errors import InputError
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import CARRecipe
from channelvq.train.plan import Machine, _measure, plan
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe

PAPER = [name for name in recipe_names() if name.startswith("paper/")]


@pytest.mark.parametrize("name", PAPER)
def test_every_paper_recipe_can_be_planned(name: str) -> None:
    found = plan(name, load_recipe(name), Machine())
    assert found.parameters > 5e7
    assert found.codes >= 16_384
    assert found.gpu_hours > 1
    assert all(size >= 0 for size in found.memory.values())
    json.dumps(found.to_dict())


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("gpu/")])
def test_the_recipes_of_one_gpu_fit_on_it(name: str) -> None:
    found = plan(name, load_recipe(name), Machine(gpus=1))
    assert (found.tokens, found.codes) == (256, 16_384)
    assert 1 < sum(found.memory.values()) / 2**30 < 70
    assert 0.05 < found.gpu_hours < 24
    assert found.training_flops * found.images == pytest.approx(found.gpu_hours * 3600 * 989e12 * 0.4)


@pytest.mark.parametrize(("name", "backbone", "with_text"), [("car-4b", 3.6e9, 4.0e9), ("car-8b", 6.95e9, 7.6e9)])
def test_the_backbones_have_their_published_sizes(name: str, backbone: float, with_text: float) -> None:
    parts = {part.name: part.parameters for part in plan(name, load_recipe(f"paper/{name}"), Machine()).parts}
    assert parts["backbone"] == pytest.approx(backbone, rel=0.01)  # non-embedding parameters of the model card
    # The card's 8.2 B count the text head too, 0.6 B, which CAR has no use for.
    assert parts["backbone"] + parts["text embedding"] == pytest.approx(with_text, rel=0.01)


def test_parameters_are_those_of_the_model() -> None:
    recipe = load_recipe("small/bundled", of=TokenizerRecipe)
    found = plan("small/bundled", recipe, Machine(gpus=1))
    assert found.parameters == sum(p.numel() for p in CVQTokenizer(recipe.model).parameters())
    assert found.memory["optimizer"] == 8 * found.parameters
    assert found.memory["moving average"] == 4 * found.parameters
    assert found.images == 6000 * 32


def test_muon_keeps_one_number_where_adam_keeps_two() -> None:
    recipe = load_recipe("paper/car-8b")
    assert isinstance(recipe, CARRecipe)
    muon = replace(recipe, objective=replace(recipe.objective, muon_learning_rate=1e-3))
    adam, both = (plan("x", each, Machine(gpus=1)) for each in (recipe, muon))
    trained = sum(part.parameters for part in adam.parts if part.trained)
    assert adam.memory["optimizer"] == 8 * trained
    # 36 layers: query and output 4096 x 4096, key and value 4096 x 1024, three of 4096 x 12288.
    matrices = 36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288)
    assert both.memory["optimizer"] == 8 * trained - 4 * matrices


def test_flops_and_activations_in_closed_form() -> None:
    with torch.device("meta"):
        layer = nn.Conv2d(3, 8, 3, padding=1)
    flops, kept = _measure(layer, torch.empty(1, 3, 16, 16, device="meta"))
    assert flops == 2 * 16 * 16 * 8 * 3 * 9
    assert kept == 4 * 3 * 16 * 16  # its input, for the gradient of its weights


def test_more_gpus_share_states_and_hours_follow_the_machine() -> None:
    recipe = load_recipe("paper/cvq-16k-256")
    one, eight = (plan("x", recipe, Machine(gpus=n)) for n in (1, 8))
    assert one.memory["weights"] == pytest.approx(8 * eight.memory["weights"])
    assert one.gpu_hours == eight.gpu_hours
    assert plan("x", recipe, Machine(mfu=0.2)).gpu_hours == pytest.approx(2 * one.gpu_hours)
    with pytest.raises(InputError, match="gpus and peak must be positive"):
        plan("x", recipe, Machine(gpus=0))


def test_what_cannot_be_planned_is_named() -> None:
    with pytest.raises(InputError, match="name the recipe that trains it as tokenizer_recipe"):
        plan("x", load_recipe("small/scenes-car", ["tokenizer=nowhere"]), Machine())
    with pytest.raises(InputError, match=r"backbone 'other/model' is not known, only of Qwen/Qwen3-4B"):
        plan("x", load_recipe("paper/car-4b", ["model.backbone=other/model"]), Machine())


def test_command_writes_json(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["plan", "paper/car-8b", "--gpus", "64", "--json", str(tmp_path / "p.json")])
    assert result.exit_code == 0, result.output
    assert "GPU-hours" in result.output
    assert json.loads((tmp_path / "p.json").read_text())["tokens"] == 256
