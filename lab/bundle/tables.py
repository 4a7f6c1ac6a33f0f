"""The code tables of the bundled tokenizers: how often each code comes at each place, on training images."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from channelvq.codec.tables import CodeTables
from channelvq.pretrained import CODE_TABLES
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import token_set
from channelvq.train.run import load_recipe

# Folder in the package, and the recipe that says what the tokenizer was trained on.
TOKENIZERS = {"tokenizer": "small/bundled", "car/tokenizer": "small/bundled-car"}
IMAGES = 8_192  # 128 tokens of each code, shared out over the places


def bundle(package: Path, say: Callable[[str], None], images: int = IMAGES) -> None:
    """Make the tables of every bundled tokenizer anew, from images of its recipe's train split."""
    for name, recipe in TOKENIZERS.items():
        began = time.perf_counter()
        tokenizer = CVQTokenizer.from_pretrained(package / name)
        ids = token_set(cast(Any, load_recipe(recipe)).data, tokenizer, "train", images).ids
        CodeTables.fit(tokenizer, ids).save(package / name)
        size = (package / name / CODE_TABLES).stat().st_size
        say(f"{package / name / CODE_TABLES}: {images} images, {size} bytes, {time.perf_counter() - began:.0f} s")
