"""The experiment store trains a recipe once, and only what changes its result changes its key."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from channelvq.errors import InputError
from channelvq.experiments.store import record, run_key, trained
from channelvq.experiments.studies import STUDIES, load, recipes, table
from channelvq.train.run import load_tokenizer_recipe

TINY = (
    "model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8", "train.steps=2",
    "model.quantizer.codebook_size=16", "data.validation_images=4", "objective.start_images=8", "train.batch_size=2",
)  # fmt: skip


def test_key_follows_the_result_not_the_place() -> None:
    recipe = load_tokenizer_recipe("small/smoke", TINY)
    elsewhere = replace(recipe, train=replace(recipe.train, output_dir="x", resume=True))
    assert run_key(elsewhere) == run_key(recipe)
    assert run_key(replace(recipe, train=replace(recipe.train, seed=1))) != run_key(recipe)


def test_a_stored_run_is_not_trained_again(tmp_path: Path) -> None:
    recipe = load_tokenizer_recipe("small/smoke", TINY)
    first, done = trained(recipe, tmp_path)
    weights = tmp_path / run_key(recipe) / "final" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    second, again = trained(recipe, tmp_path)
    assert again == done
    assert weights.stat().st_mtime_ns == before
    assert torch.equal(first.quantizer.codes(), second.quantizer.codes())
    entry = record(recipe, done, "scenes", {"psnr": 1.0})
    assert (entry["axis"], entry["codes"], entry["tokens"], entry["dim"]) == ("channel", 16, 4, 16)
    assert entry["run"] == run_key(recipe)


@pytest.mark.parametrize("study", STUDIES)
def test_studies_compare_like_with_like(study: str) -> None:
    found = list(recipes(study).values())
    assert len({run_key(recipe) for recipe in found}) == len(found)
    for recipe in found:
        assert recipe.model.network == found[0].model.network
        assert recipe.data == found[0].data
        assert recipe.model.num_tokens == found[0].model.num_tokens
        assert (recipe.train.steps, recipe.train.batch_size) == (found[0].train.steps, found[0].train.batch_size)


@pytest.mark.parametrize("study", STUDIES)
def test_stored_results_belong_to_the_recipes_as_they_are(study: str) -> None:
    result = load(Path(__file__).parents[2] / f"results/{study}-small.json")
    keys = {name: run_key(recipe) for name, recipe in recipes(study).items()}
    assert {row["name"]: row["run"] for row in result["records"]} == keys
    assert table(result).row_count == len(keys)
    for row in result["records"]:
        assert row["metrics"]["usage_tokens"] >= 8 * row["codes"]


def test_missing_result_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--rerun"):
        load(tmp_path / "none.json")
