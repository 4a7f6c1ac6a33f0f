"""Crops and sizes."""

import math

import torch
from PIL import Image

from channelvq.checks import check_whole_number, whole_number
from channelvq.errors import InputError


def resize_crop(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """The largest centred part with the aspect of `size` (side, or (height, width)), resized with antialiasing."""
    height, width = check_size(size)
    crop_width = min(image.width, max(1, round(image.height * width / height)))
    crop_height = min(image.height, max(1, round(image.width * height / width)))
    left, top = (image.width - crop_width) // 2, (image.height - crop_height) // 2
    return _resize(image, (left, top, left + crop_width, top + crop_height), (width, height))


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The whole image at `size` (height, width), with antialiasing; an aspect that differs is stretched."""
    height, width = check_size(size)
    return _resize(image, (0, 0, image.width, image.height), (width, height))


def working_size(size: tuple[int, int], multiple: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) nearest to `size` whose sides are multiples of `multiple`, of at most `max_pixels`.

    What is larger is reduced in proportion; a side never falls below `multiple`. max_pixels: at least multiple**2.
    """
    height, width = check_size(size)
    scale = min(1.0, math.sqrt(max_pixels / (height * width)))
    sides = [max(1, round(side * scale / multiple)) for side in (height, width)]
    most = max_pixels // multiple**2
    while sides[0] * sides[1] > most:  # by rounding up, or of a thin strip
        longer = int(sides[1] > sides[0])
        sides[longer] = min(sides[longer] - 1, max(1, most // sides[1 - longer]))
    return sides[0] * multiple, sides[1] * multiple


def random_crop(image: Image.Image, size: int, min_side: int, generator: torch.Generator) -> Image.Image:
    """A random square of at least `min_side` pixels (the whole short side if that is less), resized to `size`.

    Its side, then its place, are uniform; every call draws three numbers from `generator`.
    """
    size, _ = check_size(size)
    min_side = check_whole_number("min_side", min_side, 1)
    short = min(image.size)
    side = _draw(min(min_side, short), short, generator)
    left = _draw(0, image.width - side, generator)
    top = _draw(0, image.height - side, generator)
    return _resize(image, (left, top, left + side, top + side), (size, size))


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))


def _resize(image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    # Pillow widens its filter when it shrinks, so bicubic is antialiased; at equal size it copies to the bit.
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """`size` as (height, width); InputError unless both are whole numbers from 1."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    sides = [whole_number(side) or 0 for side in pair]
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"size={size!r}: expected a number of pixels or (height, width), each at least 1")
    return sides[0], sides[1]
