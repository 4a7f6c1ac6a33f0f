"""Random square crops of a few freely licensed photographs, split by photograph."""

from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT
from channelvq.data.fetched.crops import CropSource, Picture
from channelvq.data.fetched.packages import fetch
from channelvq.data.fetched.photo_list import PHOTOS
from channelvq.data.split import Split

LONGEST_HELD_SIDE = 1600


@dataclass(frozen=True, config=STRICT)
class PhotoConfig:
    """Random squares, of at least `min_side` px, of the photographs that data/fetched/photos.csv lists."""

    kind: Literal["photos"] = "photos"
    min_side: PositiveInt = 256
    weight: NonNegativeFloat = 1.0

    def build(self, size: int, split: Split) -> "PhotoSource":
        """The source of one split, with images of size x size."""
        return PhotoSource(size=size, split=split, min_side=self.min_side)


class PhotoSource(CropSource):
    """Crops of the photographs of a split, held with their long side at most 1,600 px; key: the photograph's name.

    flip: mirror half of them; None means in the train split only.
    """

    def __init__(
        self,
        size: int = 64,
        split: Split = "train",
        min_side: int = 256,
        crops: int = 1024,
        flip: bool | None = None,
        cache: Path | str | None = None,
    ) -> None:
        folder = fetch("photos", cache=cache) / "images"
        super().__init__(
            "photos",
            [Picture(photo.name, folder / photo.file) for photo in PHOTOS if photo.split == split],
            size,
            min_side=min_side,
            longest_side=LONGEST_HELD_SIDE,
            crops=crops,
            flip=split == "train" if flip is None else flip,
            what=f"photograph of the {split} split",
        )
