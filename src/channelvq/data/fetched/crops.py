"""Random square crops of picture files that are held in memory: photographs, textures, nebulae."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps

from channelvq.data.source import Sample
from channelvq.errors import InputError
from channelvq.images import load_image, to_tensor


@dataclass(frozen=True)
class Picture:
    """A picture file; its key is that of every crop of it."""

    key: str
    path: Path


class CropSource:
    """`crops` numbered random squares of pictures; crop i is of picture i modulo their number.

    Pictures are held in memory with their long side at most `longest_side` px; a square has at least `min_side` of
    those pixels a side and is resized with antialiasing. Pictures with a shorter side below min_side are left out.
    flip: mirror half of the crops. what: a picture, in words, for errors. text is "".
    Raises InputError for sizes that do not fit each other, and where no picture is large enough.
    """

    def __init__(
        self, name: str, pictures: Sequence[Picture], size: int, *, min_side: int, longest_side: int,
        crops: int | None, flip: bool, what: str = "picture",
    ) -> None:  # fmt: skip
        if not (size >= 8 and min_side >= size and (crops is None or crops >= 1)):
            raise InputError(
                f"{name}: size {size}, min_side {min_side}, crops {crops}: need 8 <= size <= min_side, crops >= 1"
            )
        self.pictures = [picture for picture in pictures if min(_held_size(picture.path, longest_side)) >= min_side]
        if not self.pictures:
            raise InputError(f"{name}: no {what} has a side of {min_side} px or more")
        self.size, self.min_side, self.longest_side, self.flip = size, min_side, longest_side, flip
        self.crops = len(self.pictures) if crops is None else crops
        self._held: dict[Path, Image.Image] = {}

    def __len__(self) -> int:
        return self.crops

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """Crop `index`: uint8 (3, size, size); its place, extent and mirroring are drawn from `generator`."""
        picture = self.pictures[index % len(self.pictures)]
        if picture.path not in self._held:
            self._held[picture.path] = _read(picture.path, self.longest_side)
        image = self._held[picture.path]
        draws = torch.rand(4, generator=generator).tolist()
        shorter = min(image.size)
        side = min(self.min_side + int(draws[0] * (shorter - self.min_side + 1)), shorter)
        left, top = (int(draw * (extent - side + 1)) for draw, extent in zip(draws[1:3], image.size, strict=True))
        box = (left, top, left + side, top + side)
        crop = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        if self.flip and draws[3] < 0.5:
            crop = ImageOps.mirror(crop)
        return Sample(to_tensor(crop), "", picture.key)


def _held_size(path: Path, longest_side: int) -> tuple[int, int]:
    with Image.open(path) as file:
        width, height = file.size
    scale = min(1.0, longest_side / max(width, height))
    return round(width * scale), round(height * scale)


def _read(path: Path, longest_side: int) -> Image.Image:
    size = _held_size(path, longest_side)
    with Image.open(path) as file:
        # A JPEG decoder can leave out what will be scaled away: many times faster for large photographs.
        file.draft("RGB", (2 * size[0], 2 * size[1]))
        image = load_image(file) if file.has_transparency_data else file.convert("RGB")
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return ImageOps.exif_transpose(image)
