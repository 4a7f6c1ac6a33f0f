"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): 70,000 gray pictures of clothes in ten classes, centred."""

import gzip
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT
from channelvq.data.fetched.packages import fetch
from channelvq.data.source import Sample
from channelvq.data.split import Split
from channelvq.errors import InputError
from channelvq.images import to_tensor

FashionClass = Literal[
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
]
CLASSES: tuple[FashionClass, ...] = get_args(FashionClass)
SIDE = 28
MARGIN = 2  # on each side: 32 pixels can be halved five times
VALIDATION = 5_000  # the last of the official training set
_IMAGES_HEADER, _LABELS_HEADER = 16, 8  # bytes of an idx file before its numbers


@dataclass(frozen=True, config=STRICT)
class FashionConfig:
    """Fashion-MNIST on 32 x 32 pixels; the caption is the name of the class."""

    kind: Literal["fashion-mnist"] = "fashion-mnist"
    weight: NonNegativeFloat = 1.0

    def build(self, size: int, split: Split) -> "FashionSource":
        """The source of one split, with images of size x size."""
        return FashionSource(size=size, split=split)


class FashionSource:
    """The pictures of a split in the order of the data set; text: the class; key: "train/00042" in the official files.

    The test split is the official one; the last 5,000 of the official training set are the validation split. A picture
    has a black margin of 2 pixels, which makes it 32 x 32, and is resized where `size` is another. labels: (n,) int64.
    """

    def __init__(self, size: int = 32, split: Split = "train", cache: Path | str | None = None) -> None:
        if size < 8:
            raise InputError(f"fashion-mnist: size {size} is too small, at least 8 pixels are needed")
        folder = fetch("fashion-mnist", cache=cache)
        self.official = "t10k" if split == "test" else "train"
        images = _numbers(folder / f"{self.official}-images-idx3-ubyte.gz", _IMAGES_HEADER).reshape(-1, SIDE, SIDE)
        labels = _numbers(folder / f"{self.official}-labels-idx1-ubyte.gz", _LABELS_HEADER)
        self.first = len(images) - VALIDATION if split == "validation" else 0
        chosen = slice(self.first, len(images) - VALIDATION if split == "train" else None)
        self.size = size
        self.labels = torch.from_numpy(labels[chosen].astype(np.int64))
        self._images = images[chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """Picture `index`: uint8 (3, size, size), gray; nothing about it is random."""
        del generator
        picture = Image.fromarray(np.pad(self._images[index], MARGIN)).convert("RGB")
        if picture.width != self.size:
            picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return Sample(to_tensor(picture), CLASSES[self.labels[index]], f"{self.official}/{self.first + index:05d}")


def _numbers(path: Path, header: int) -> UInt8[np.ndarray, " n"]:
    """What an idx file holds after its header, whose sizes are known: the package is pinned by its hash."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)[header:]
