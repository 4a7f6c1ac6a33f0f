"""The code tables of the bundled tokenizers: how often each code comes at each place, on training images."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from channelvq.codec.tables import CodeTables
from channelvq.data.build import build_mixture
from channelvq.images import normalize
from channelvq.pretrained import CODE_TABLES
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe

# Folder in the package, and the recipe that says what the tokenizer was trained on.
TOKENIZERS = {"tokenizer": "small/bundled", "car/tokenizer": "small/bundled-car-tokenizer"}
IMAGES = 16_384
PART = 1024  # images in memory at a time


def bundle(package: Path, say: Callable[[str], None], images: int = IMAGES) -> None:
    """Make the tables of every bundled tokenizer anew, from images of its recipe's train split."""
    for name, recipe in TOKENIZERS.items():
        began = time.perf_counter()
        tokenizer = CVQTokenizer.from_pretrained(package / name)
        CodeTables.fit(tokenizer, training_ids(tokenizer, recipe, images)).save(package / name)
        size = (package / name / CODE_TABLES).stat().st_size
        say(f"{package / name / CODE_TABLES}: {images} images, {size} bytes, {time.perf_counter() - began:.0f} s")


def training_ids(tokenizer: CVQTokenizer, recipe: str, count: int) -> Tensor:
    """Ids of the first images of a recipe's train split, (count, K)."""
    data = load_recipe(recipe, of=TokenizerRecipe).data
    mixture = build_mixture(data, tokenizer.image_size, "train", seed=1)
    parts = []
    for start in range(0, count, PART):
        samples = [mixture[position] for position in range(start, min(start + PART, count))]
        parts.append(tokenizer.tokenize(normalize(torch.stack([sample.image for sample in samples]))))
    return torch.cat(parts)
