"""The stored result of pictures of any size is that of the recipes as they are; the ways that it compares."""

from pathlib import Path
from typing import Any

import pytest
import torch

from channelvq.images import normalize
from channelvq.nn.conv import ConvConfig
from channelvq.nn.resampler import ResamplerConfig
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from lab.store import run_key
from lab.studies import any_size

RESULT = Path(__file__).parents[3] / "results/anysize.json"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return any_size.load(RESULT)


def test_every_record_is_of_the_recipe_that_it_names(result: dict[str, Any]) -> None:
    keys = {name: run_key(recipe) for name, recipe in any_size.recipes().items()}
    found = {(tuple(row["size"]), row["name"], row["way"]): row["run"] for row in result["records"]}
    assert set(found) == {(size, name, way) for size in any_size.SIZES for name in keys for way in any_size.WAYS[name]}
    assert all(run == keys[name] for (_, name, _), run in found.items())


def test_sizes_that_are_called_unseen_are(result: dict[str, Any]) -> None:
    sizes = any_size.recipes()["resampler"].sizes or ()
    assert all(row["unseen"] == (tuple(row["size"]) not in sizes) for row in result["records"])


def test_at_home_both_ways_are_one_and_gains_are_differences(result: dict[str, Any]) -> None:
    psnr = {(tuple(row["size"]), row["name"], row["way"]): row["metrics"]["psnr"] for row in result["records"]}
    for row in result["records"]:
        size = tuple(row["size"])
        own = psnr[size, "resampler", "own size"]
        assert row["psnr_gain"]["mean"] == pytest.approx(own - row["metrics"]["psnr"], abs=2e-4)
        if size == (64, 64):
            assert psnr[size, row["name"], "own size"] == psnr[size, row["name"], "resized"]


def test_the_ways_restore_pictures_of_their_own_size() -> None:
    torch.manual_seed(0)
    network = ConvConfig(stem=8, base_channels=8, multipliers=(1,), num_blocks=1)
    config = CVQConfig(image_size=32, latent_channels=4, network=network, resampler=ResamplerConfig(width=8))
    tokenizer = CVQTokenizer(config).eval()
    images = any_size.held_out_at(any_size.recipes()["resampler"], (32, 48), 2)
    assert images.shape == (2, 3, 32, 48)
    assert tokenizer.resampler is not None
    for parameter in tokenizer.resampler.parameters():
        torch.nn.init.normal_(parameter)
    own, resized, off = (any_size.restored(tokenizer, images, way) for way in any_size.WAYS["resampler"])
    assert own.shape == resized.shape == off.shape == images.shape
    assert not torch.equal(own, resized)
    assert not torch.equal(own, off)
    assert torch.equal(any_size.restored(tokenizer, images, "own size"), own)  # which stays as it was
    home = any_size.held_out_at(any_size.recipes()["resampler"], (32, 32), 2)
    assert torch.equal(any_size.restored(tokenizer, home, "resized"), any_size.restored(tokenizer, home, "own size"))
    assert not torch.equal(normalize(own), normalize(images))
