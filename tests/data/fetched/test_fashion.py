"""Fashion-MNIST: its official split, its sizes and what is refused, on a small copy in its own format."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.clothes import write_fashion

from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.fetched import fashion
from channelvq.data.fetched.fashion import CLASSES, FashionConfig, FashionSource
from channelvq.errors import InputError


@pytest.fixture(autouse=True)
def small_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """20 training and 10 test pictures; picture i is of class i % 10 and all of the gray level i."""
    monkeypatch.setattr(fashion, "VALIDATION", 5)
    monkeypatch.setattr(fashion, "fetch", lambda name, cache=None: tmp_path)
    levels = np.arange(20, dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None], (20, 28, 28))
    write_fashion(tmp_path, train=images, t10k=images[:10])
    return levels[:10]


def test_splits_are_the_official_test_and_the_end_of_the_official_training_set() -> None:
    drawn = {
        split: [FashionSource(split=split).sample(i, torch.Generator()) for i in range(len(FashionSource(split=split)))]
        for split in ("train", "validation", "test")
    }
    keys = {split: [sample.key for sample in samples] for split, samples in drawn.items()}
    assert keys["train"] == [f"train/{i:05d}" for i in range(15)]
    assert keys["validation"] == [f"train/{i:05d}" for i in range(15, 20)]
    assert keys["test"] == [f"t10k/{i:05d}" for i in range(10)]
    for split, first in (("train", 0), ("validation", 15), ("test", 0)):
        for i, sample in enumerate(drawn[split]):
            assert sample.text == CLASSES[(first + i) % 10]
            assert sample.image.shape == (3, 32, 32)
            assert (sample.image[:, 2:30, 2:30] == first + i).all()
            assert sample.image.sum() == 3 * 28 * 28 * (first + i)  # the margin is black


def test_labels_are_those_of_the_split() -> None:
    assert FashionSource(split="validation").labels.tolist() == [5, 6, 7, 8, 9]


def test_other_sizes_are_resized_and_tiny_ones_refused() -> None:
    assert FashionSource(size=64).sample(0, torch.Generator()).image.shape == (3, 64, 64)
    with pytest.raises(InputError, match="size 4 is too small"):
        FashionSource(size=4)


def test_a_recipe_mixes_it_like_any_source() -> None:
    mixture = build_mixture(DataConfig({"fashion": FashionConfig()}), 32, "train", seed=0)
    assert {mixture[i].text for i in range(40)} <= set(CLASSES)
