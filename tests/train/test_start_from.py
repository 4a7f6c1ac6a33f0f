"""Training that begins with given weights."""

from pathlib import Path

import pytest
import torch

from channelvq.errors import InputError
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.run import load_recipe, train
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask
from lab.store import run_key

SMALL = ("model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8", "train.batch_size=2",
         "model.quantizer.codebook_size=16", "data.validation_images=4", "objective.start_images=8",
         "train.warmup_steps=0", "train.precision=no", "train.threads=1")  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The end of a short run."""
    folder = tmp_path_factory.mktemp("given")
    train(load_recipe("small/smoke", [*SMALL, "train.steps=3", f"train.output_dir={folder}"], of=TokenizerRecipe))
    return folder / "final"


def test_at_a_learning_rate_of_nothing_the_weights_stay_as_given(given: Path, tmp_path: Path) -> None:
    settings = [*SMALL, f"objective.start_from={given}", "train.steps=2", "train.seed=5", "train.ema=0.9",
                "train.learning_rate=1e-30", f"train.output_dir={tmp_path}"]  # fmt: skip
    train(load_recipe("small/smoke", settings, of=TokenizerRecipe))
    first, last = (CVQTokenizer.from_pretrained(path).state_dict() for path in (given, tmp_path / "final"))
    assert first.keys() == last.keys()
    for name, tensor in first.items():
        assert torch.allclose(last[name].float(), tensor.float(), rtol=0, atol=1e-20), name


def test_the_given_codebook_is_not_started_again_and_learns_on(given: Path, tmp_path: Path) -> None:
    settings = [f"objective.start_from={given}", "train.steps=2", "train.learning_rate=1e-3"]
    recipe = load_recipe("small/smoke", [*SMALL, *settings, f"train.output_dir={tmp_path}"], of=TokenizerRecipe)
    task, codes = TokenizerTask(recipe), CVQTokenizer.from_pretrained(given).quantizer.codes()
    task.start()
    assert torch.equal(task.tokenizer.quantizer.codes(), codes)
    train(recipe)
    moved = (CVQTokenizer.from_pretrained(tmp_path / "final").quantizer.codes() - codes).abs().max()
    assert 0 < moved < 0.1  # Adam's steps are about a learning rate each


def test_a_resampler_may_be_new_and_changes_nothing_at_home(given: Path) -> None:
    settings = [*SMALL, f"objective.start_from={given}", "model.resampler={width: 16}"]
    task, start = (
        TokenizerTask(load_recipe("small/smoke", settings, of=TokenizerRecipe)),
        CVQTokenizer.from_pretrained(given),
    )
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    grown = task.tokenizer.eval()
    assert torch.equal(grown.tokenize(images), start.tokenize(images))
    assert grown.tokenize(images[:, :, :, :16].repeat(1, 1, 1, 3)).shape == (2, 4)


def test_another_model_is_refused_with_its_differences(given: Path) -> None:
    recipe = load_recipe(
        "small/smoke", [*SMALL, f"objective.start_from={given}", "model.latent_channels=8"], of=TokenizerRecipe
    )
    with pytest.raises(InputError, match=r"objective\.start_from.*latent_channels: 4 -> 8"):
        TokenizerTask(recipe)
    with pytest.raises(InputError, match="no such folder"):
        TokenizerTask(load_recipe("small/smoke", [*SMALL, "objective.start_from=./nowhere"], of=TokenizerRecipe))


def test_the_option_leaves_the_keys_of_stored_runs_as_they_are() -> None:
    plain = load_recipe("small/smoke", of=TokenizerRecipe)
    assert run_key(load_recipe("small/smoke", ["objective.start_from=null"], of=TokenizerRecipe)) == run_key(plain)
    assert run_key(load_recipe("small/smoke", ["objective.start_from=bundled"], of=TokenizerRecipe)) != run_key(plain)


def test_the_bundled_tokenizer_fits_the_recipes_that_finetune_it() -> None:
    for recipe in ("small/domain", "small/own"):
        loaded = load_recipe(recipe, of=TokenizerRecipe)
        assert loaded.model == CVQTokenizer.from_pretrained("bundled").config
