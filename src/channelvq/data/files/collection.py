"""What folders, manifests, shards and tables of pictures share: who is in the split, and how a sample is made."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Int64
from PIL import Image

from channelvq.data.options import ImageOptions, SkippedFilesWarning, SplitOrAll
from channelvq.data.source import Sample
from channelvq.data.split import EmptySplitError, Split
from channelvq.errors import InputError, first_few
from channelvq.images import Skipped

SPLIT_NAMES: dict[Split, str] = {"train": "training", "validation": "validation", "test": "test"}


class Collection(ABC):
    """The pictures of a user in one split. name: of the data set, in errors.

    skipped: what cannot be used, each with its reason.
    """

    skipped: list[Skipped]

    def __init__(self, name: str, size: int, split: SplitOrAll, options: ImageOptions | None) -> None:
        splits = (*get_args(Split), "all")
        if split not in splits:
            raise InputError(f"split={split!r}: expected one of {', '.join(splits)}")
        if size < 1:
            raise InputError(f"size={size}: expected at least 1 pixel")
        self.name, self.size, self.options = name, size, options or ImageOptions()
        self.split: SplitOrAll = split

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def stamp(self) -> str:
        """A digest that changes with the files."""

    @abstractmethod
    def _read(self, index: int) -> tuple[Image.Image, str, str]:
        """The picture, caption and key of a sample; InputError if it can no longer be read."""

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """Sample `index` with an image (3, size, size); InputError naming its file if it broke since it was checked."""
        if not 0 <= index < len(self):
            raise InputError(f"sample {index} of a source with {len(self)} samples")
        picture, text, key = self._read(index)
        return Sample(self.options.square(picture, self.size, generator), text, key)

    def _chosen(self, count: int, in_split: Callable[[Split], Bool[np.ndarray, " count"]]) -> Int64[np.ndarray, " n"]:
        """Numbers of those of `count` pictures that are in the split; InputError where there is none."""
        if not count:
            raise InputError(f"{self.name}: it lists no image")
        chosen = np.arange(count) if self.split == "all" else np.flatnonzero(in_split(self.split))
        if not len(chosen):
            have = ", ".join(f"{int(in_split(split).sum())} in {split}" for split in get_args(Split))
            raise EmptySplitError(f"{self.name}: no image in split {self.split!r} ({have})")
        return chosen

    def _report_skipped(self, good: int, stacklevel: int = 3) -> None:
        """Warn of what is skipped; InputError where `good`, the number of the others, is 0.

        stacklevel: 3 where the constructor that the user called calls this, 4 through another one.
        """
        if not self.skipped:
            return
        total, reasons = good + len(self.skipped), first_few([skipped.reason for skipped in self.skipped])
        images = "images" if self.split == "all" else f"images of the {SPLIT_NAMES[self.split]} split"
        if not good:
            raise InputError(f"{self.name}: none of {total} {images} can be read: {reasons}")
        text = f"{self.name}: {len(self.skipped)} of {total} {images} skipped: {reasons}"
        warnings.warn(text, SkippedFilesWarning, stacklevel=stacklevel)
