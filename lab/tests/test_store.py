"""The experiment store trains a recipe once, and only what changes its result changes its key."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.nn.linear import LinearConfig
from channelvq.train.car_task import CARRecipe
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.listing import studies, study_module
from lab.store import generator_key, kept_records, record, run_key, trained, trained_generator
from lab.studies import car_tokens, generator, orderings
from lab.studies.table1 import BEST_RATE
from lab.studies.table1_tuning import METHODS, RATES
from lab.study import RecipeStudy, runs_table

STUDIES = {
    name: study for name in studies() if isinstance(study := study_module(name).STUDY, RecipeStudy)
}  # fmt: skip
GROWING = ("tokens",)  # studies whose runs are not all done yet
TINY = (
    "model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8", "train.steps=2",
    "model.quantizer.codebook_size=16", "data.validation_images=4", "objective.start_images=8", "train.batch_size=2",
)  # fmt: skip

TINY_CAR = (
    "train.compile=false", "train.steps=3", "objective.lm_steps=1", "objective.stage1_steps=1", "train.batch_size=2",
    "data.validation_images=4", "data.sources.scenes.sprites=shapes", "model.max_text_tokens=64",
    "objective.train_images=8", "objective.text_vocab_size=300",
    "model.backbone.hidden_size=32", "model.backbone.num_hidden_layers=1", "model.backbone.num_attention_heads=2",
)  # fmt: skip


def test_key_follows_the_result_not_the_place() -> None:
    recipe = load_recipe("small/smoke", TINY, of=TokenizerRecipe)
    elsewhere = replace(recipe, train=replace(recipe.train, output_dir="x", resume=True))
    assert run_key(elsewhere) == run_key(recipe)
    assert run_key(replace(recipe, train=replace(recipe.train, seed=1))) != run_key(recipe)


def test_a_stored_run_is_not_trained_again(tmp_path: Path) -> None:
    recipe = load_recipe("small/smoke", TINY, of=TokenizerRecipe)
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


def test_records_are_kept_where_the_protocol_is_what_was_written(tmp_path: Path) -> None:
    how = {"n": 8, "judge": {"accuracy": 0.9279000163078308}, "git": "now"}  # a file rounds it
    write_json(tmp_path / "r.json", {"protocol": how | {"git": "before"}, "records": [{"name": "a", "run": "1"}]})
    stored = json.loads((tmp_path / "r.json").read_text())
    assert kept_records(stored, tmp_path / "r.json", how, {"a": "1"})["a"]["protocol"] == {"git": "before"}
    assert kept_records(stored, tmp_path / "r.json", how, {"a": "2"}) == {}
    with pytest.raises(InputError, match=r"measured in another way \(judge.accuracy: 0.9279 -> 0.9281\)"):
        kept_records(stored, tmp_path / "r.json", how | {"judge": {"accuracy": 0.9281}}, {"a": "1"})


def test_a_generator_is_named_by_its_tokenizers_recipe_not_by_a_path() -> None:
    tokenizer = load_recipe("small/scenes-tokenizer", of=TokenizerRecipe)
    car = load_recipe("small/scenes-car", of=CARRecipe)
    assert generator_key(tokenizer, replace(car, tokenizer="elsewhere")) == generator_key(tokenizer, car)
    twin = load_recipe("small/scenes-tokenizer", ["nested.alpha=0"], of=TokenizerRecipe)
    assert generator_key(twin, car) != generator_key(tokenizer, car)
    assert generator_key(tokenizer, replace(car, train=replace(car.train, seed=1))) != generator_key(tokenizer, car)


def test_a_generator_trains_on_the_stored_tokenizer_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    tokenizer = load_recipe("small/smoke", TINY, of=TokenizerRecipe)
    recipe = load_recipe("small/scenes-car", TINY_CAR, of=CARRecipe)
    car, done = trained_generator(tokenizer, recipe, tmp_path)
    assert done["run"] == generator_key(tokenizer, recipe)
    base, _ = trained(tokenizer, tmp_path)
    assert torch.equal(car.codebook, base.quantizer.codes())
    again, _ = trained_generator(tokenizer, recipe, tmp_path)
    assert torch.equal(again.head.weight, car.head.weight)
    assert len([path for path in tmp_path.iterdir() if (path / "done.json").is_file()]) == 2


def test_the_generator_study_changes_one_thing_at_a_time() -> None:
    assert len(set(generator.keys().values())) == len(generator.VARIANTS) + len(generator.TOKENIZERS)
    found = {name: generator.recipes(variant) for name, variant in generator.VARIANTS.items()}
    (_, first), (_, twin) = found["nested, seed 0"], found["not nested, seed 0"]
    assert first == twin
    for _, recipe in found.values():
        assert (recipe.data, recipe.objective) == (first.data, first.objective)
        assert replace(recipe.train, seed=0) == first.train


def test_the_study_of_kinds_of_tokens_changes_the_tokenizer_alone() -> None:
    assert len(set(car_tokens.keys().values())) == len(car_tokens.VARIANTS) + len(car_tokens.TOKENIZERS)
    found = {name: car_tokens.recipes(name) for name in car_tokens.VARIANTS}
    _, first = found["nested, seed 0"]
    for _, recipe in found.values():
        assert replace(recipe, train=replace(recipe.train, seed=0)) == first
    channel, patch = (found[f"{name}, seed 0"][0] for name in ("not nested", "patch-wise"))
    assert channel.model.num_tokens == patch.model.num_tokens
    assert replace(patch, model=replace(patch.model, axis="channel")) == channel


def test_the_stored_study_of_kinds_of_tokens_belongs_to_its_recipes() -> None:
    result = car_tokens.load(Path(__file__).parents[2] / "results/car-tokens-small.json")
    assert {row["name"]: row["run"] for row in result["records"]} == car_tokens.keys()


def test_the_stored_orderings_belong_to_their_recipes() -> None:
    result = orderings.load(Path(__file__).parents[2] / "results/orderings-small.json")
    assert {row["name"]: row["run"] for row in result["records"]} == orderings.keys()
    assert sorted(result["records"][-1]["order"]) == list(range(64))


@pytest.mark.parametrize("study", STUDIES)
def test_studies_compare_like_with_like(study: str) -> None:
    found = list(STUDIES[study].recipes().values())
    assert len({run_key(recipe) for recipe in found}) == len(found)
    for tokens in {recipe.model.num_tokens for recipe in found}:
        group = [recipe for recipe in found if recipe.model.num_tokens == tokens]
        if tokens == 64:  # four times the patches need a network that halves once less
            assert len({str(_trained_network(recipe)) for recipe in group}) == 1
        for recipe in group:
            assert recipe.data == found[0].data
            assert (recipe.train.steps, recipe.train.batch_size) == (found[0].train.steps, found[0].train.batch_size)


def _trained_network(recipe: TokenizerRecipe) -> object:
    """What of the network is trained: the linear part of a linear coder is fitted, and differs between the axes."""
    network = recipe.model.network
    return (network.encoder, network.decoder) if isinstance(network, LinearConfig) else network


def test_table1_takes_the_rate_that_validation_found() -> None:
    result = STUDIES["table1-tuning"].load(Path(__file__).parents[2] / "results/table1-tuning-small.json")
    psnr = {row["name"]: row["validation"]["psnr_64"] for row in result["records"]}
    assert {m: max(RATES, key=lambda rate: psnr[f"{m}, rate {rate}"]) for m in METHODS} == BEST_RATE


@pytest.mark.parametrize("study", sorted(STUDIES))
def test_stored_results_belong_to_the_recipes_as_they_are(study: str) -> None:
    result = STUDIES[study].load(Path(__file__).parents[2] / "results" / studies()[study].result)
    keys, stored = STUDIES[study].keys(), {row["name"]: row["run"] for row in result["records"]}
    assert stored == {name: key for name, key in keys.items() if name in stored or study not in GROWING}
    assert len(runs_table(result).rows) == len(stored)
    for row in result["records"]:
        assert row["metrics"]["usage_tokens"] >= 8 * row["codes"]


def test_missing_result_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--rerun"):
        STUDIES["axis"].load(tmp_path / "none.json")


def test_the_stored_generator_study_belongs_to_its_recipes() -> None:
    result = generator.load(Path(__file__).parents[2] / "results/generator-small.json")
    assert {row["name"]: row["run"] for row in result["records"]} == generator.keys()
    assert len(generator.generators(result).rows) == len(generator.VARIANTS)
