"""What every collection of image files shares: how a picture becomes a square, and who is in which split."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple, get_args

import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from channelvq.config import STRICT
from channelvq.data.split import EmptySplitError, Split
from channelvq.errors import InputError
from channelvq.images import Skipped, random_crop, resize_crop, to_tensor

SplitOrAll = Split | Literal["all"]
Crop = Literal["center", "random"]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ImageOptions:
    """How the pictures of a collection are used.

    crop: "center", the largest centred square, or "random", a random square of at least `min_side` px. flip: mirror
    half of the samples, wrong where captions say left and right. validation, test: shares of the images, by the hash
    of their names; the rest trains.
    """

    crop: Crop = "center"
    min_side: PositiveInt = 256
    flip: bool = False
    validation: Fraction = 0.05
    test: Fraction = 0.10

    def __post_init__(self) -> None:
        if self.validation + self.test > 1:
            raise ValueError(f"validation {self.validation} and test {self.test} must together be at most 1")

    def square(self, image: Image.Image, size: int, generator: torch.Generator) -> UInt8[Tensor, "3 size size"]:
        """The crop of an RGB image, perhaps mirrored; what is random about it is drawn from `generator`."""
        if self.crop == "center":
            image = resize_crop(image, size)
        else:
            image = random_crop(image, size, self.min_side, generator)
        if self.flip and float(torch.rand((), generator=generator, device=generator.device)) < 0.5:
            image = ImageOps.mirror(image)
        return to_tensor(image)

    def place(self, split: Split, main: str, validation: str | None, test: str | None) -> "Place":
        """Where the images of a split are: a split with a place of its own has no share of the main one."""
        own = {"validation": validation, "test": test}
        if (where := own.get(split)) is not None:
            return Place(where, "all", self)
        return Place(main, split, replace(self, **{name: 0.0 for name, where in own.items() if where is not None}))


class Place(NamedTuple):
    """Where images are, and which of those that are there."""

    where: str
    split: SplitOrAll
    options: ImageOptions

    def at(self, size: int) -> tuple[str, int, SplitOrAll, ImageOptions]:
        """The first arguments of a source."""
        return self.where, size, self.split, self.options


class SkippedFilesWarning(UserWarning):
    """Some images of a data set cannot be used; the source goes on without them and lists them in `skipped`."""


def check_request(size: int, split: str) -> None:
    """InputError unless `split` is a split or "all" and `size` at least 1."""
    splits = (*get_args(Split), "all")
    if split not in splits:
        raise InputError(f"split={split!r}: expected one of {', '.join(splits)}")
    if size < 1:
        raise InputError(f"size={size}: expected at least 1 pixel")


def check_index(index: int, length: int) -> None:
    """InputError unless a source of `length` samples has number `index`."""
    if not 0 <= index < length:
        raise InputError(f"sample {index} of a source with {length} samples")


def empty_split(name: str, split: str, counts: Mapping[str, int]) -> InputError:
    """The error of a data set without an image in `split`; counts: how many each split has."""
    if not sum(counts.values()):
        return InputError(f"{name}: it lists no image")
    have = ", ".join(f"{counts.get(each_split, 0)} in {each_split}" for each_split in get_args(Split))
    return EmptySplitError(f"{name}: no image in split {split!r} ({have})")


def report_skipped(name: str, skipped: Sequence[Skipped], good: int, stacklevel: int = 3) -> None:
    """Warn of the images that are left out; InputError where `good`, the number of the others, is 0.

    stacklevel: 3 where the constructor that the user called calls this, 4 through another one.
    """
    if not skipped:
        return
    total, reason = good + len(skipped), skipped[0].reason
    if not good:
        raise InputError(f"{name}: none of {total} images can be read; the first: {reason}")
    text = f"{name}: {len(skipped)} of {total} images skipped; the first: {reason}"
    warnings.warn(text, SkippedFilesWarning, stacklevel=stacklevel)
