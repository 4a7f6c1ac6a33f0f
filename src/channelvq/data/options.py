"""What every collection of image files shares: how a picture becomes a square, and who is in which split."""

from dataclasses import replace
from typing import Annotated, Literal, Self

import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from channelvq.config import STRICT
from channelvq.data.split import Split
from channelvq.images import random_crop, resize_crop, to_tensor

SplitOrAll = Split | Literal["all"]
Crop = Literal["center", "random"]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Shares:
    """Who is in which split. validation, test: shares of the images, by the hash of their names; the rest trains."""

    validation: Fraction = 0.05
    test: Fraction = 0.10

    def __post_init__(self) -> None:
        if self.validation + self.test > 1:
            raise ValueError(f"validation {self.validation} and test {self.test} must together be at most 1")

    def place(self, split: Split, main: str, validation: str | None, test: str | None) -> tuple[str, SplitOrAll, Self]:
        """Where a split's images are, which of those, and how; a split with its own place has none of `main`."""
        own = {"validation": validation, "test": test}
        if (where := own.get(split)) is not None:
            return where, "all", self
        return main, split, replace(self, **{name: 0.0 for name, where in own.items() if where is not None})


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ImageOptions(Shares):
    """How the pictures of a collection are used.

    crop: "center", the largest centred square, or "random", a random square of at least `min_side` px. flip: mirror
    half of the samples, wrong where captions say left and right.
    """

    crop: Crop = "center"
    min_side: PositiveInt = 256
    flip: bool = False

    def square(self, image: Image.Image, size: int, generator: torch.Generator) -> UInt8[Tensor, "3 size size"]:
        """The crop of an RGB image, perhaps mirrored; what is random about it is drawn from `generator`."""
        if self.crop == "center":
            image = resize_crop(image, size)
        else:
            image = random_crop(image, size, self.min_side, generator)
        if self.flip and float(torch.rand((), generator=generator, device=generator.device)) < 0.5:
            image = ImageOps.mirror(image)
        return to_tensor(image)


class SkippedFilesWarning(UserWarning):
    """Some images of a data set cannot be used; the source goes on without them and lists them in `skipped`."""
