"""Random square crops of a few freely licensed photographs, split by photograph."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from channelvq.data.packages import fetch
from channelvq.data.photo_list import PHOTOS, Photo
from channelvq.data.source import Sample
from channelvq.data.split import Split
from channelvq.errors import InputError

LONGEST_HELD_SIDE = 1600


class PhotoSource:
    """`crops` numbered random squares of the photographs of a split; crop i is of photograph i modulo their number.

    Photographs are held in memory with their long side at most 1,600 px; a square has at least `min_side` of those
    pixels a side and is resized with antialiasing. Photographs with a shorter side below min_side are left out.
    flip: mirror half of them; None means in the train split only. text is "", key the photograph's name.
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
        if not (size >= 8 and min_side >= size and crops >= 1):
            raise InputError(
                f"photos: size {size}, min_side {min_side}, crops {crops}: need 8 <= size <= min_side, crops >= 1"
            )
        folder = fetch("photos", cache=cache) / "images"
        chosen = [photo for photo in PHOTOS if photo.split == split]
        self.photos = [photo for photo in chosen if min(_held_size(folder / photo.file)) >= min_side]
        if not self.photos:
            raise InputError(f"photos: no photograph of the {split} split has a side of {min_side} px or more")
        self.size, self.min_side, self.crops, self.folder = size, min_side, crops, folder
        self.flip = split == "train" if flip is None else flip
        self._held: dict[str, Image.Image] = {}

    def __len__(self) -> int:
        return self.crops

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """Crop `index`: uint8 (3, size, size); its place, extent and mirroring are drawn from `generator`."""
        photo = self.photos[index % len(self.photos)]
        image = self._image(photo)
        draws = torch.rand(4, generator=generator).tolist()
        shorter = min(image.size)
        side = min(self.min_side + int(draws[0] * (shorter - self.min_side + 1)), shorter)
        left, top = (int(draw * (extent - side + 1)) for draw, extent in zip(draws[1:3], image.size, strict=True))
        box = (left, top, left + side, top + side)
        crop = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        if self.flip and draws[3] < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return Sample(torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous(), "", photo.name)

    def _image(self, photo: Photo) -> Image.Image:
        if photo.name not in self._held:
            self._held[photo.name] = _read(self.folder / photo.file)
        return self._held[photo.name]


def _held_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as file:
        width, height = file.size
    scale = min(1.0, LONGEST_HELD_SIDE / max(width, height))
    return round(width * scale), round(height * scale)


def _read(path: Path) -> Image.Image:
    with Image.open(path) as file:
        size = _held_size(path)
        # A JPEG decoder can leave out what will be scaled away: many times faster for large photographs.
        file.draft("RGB", (2 * size[0], 2 * size[1]))
        image = file.convert("RGB")
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return ImageOps.exif_transpose(image)
