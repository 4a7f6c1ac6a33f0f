"""Crops, sizes and paddings."""

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from channelvq.checks import check_whole, whole
from channelvq.errors import InputError


@dataclass(frozen=True)
class Padding:
    """Pixels that `pad_to_multiple` added below and on the right."""

    bottom: int
    right: int


def resize_crop(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """The largest centred part with the aspect of `size` (side, or (height, width)), resized with antialiasing."""
    height, width = check_size(size)
    crop_width = min(image.width, max(1, round(image.height * width / height)))
    crop_height = min(image.height, max(1, round(image.width * height / width)))
    left, top = (image.width - crop_width) // 2, (image.height - crop_height) // 2
    return _resize(image, (left, top, left + crop_width, top + crop_height), (width, height))


def random_crop(image: Image.Image, size: int, min_side: int, generator: torch.Generator) -> Image.Image:
    """A random square of at least `min_side` pixels (the whole short side if that is less), resized to `size`.

    Its side, then its place, are uniform; every call draws three numbers from `generator`.
    """
    size, _ = check_size(size)
    min_side = check_whole("min_side", min_side, 1)
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
    sides = [whole(side) or 0 for side in pair]
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"size={size!r}: expected a number of pixels or (height, width), each at least 1")
    return sides[0], sides[1]


def pad_to_multiple(x: Shaped[Tensor, "b c h w"], multiple: int) -> tuple[Shaped[Tensor, "b c H W"], Padding]:
    """`x` mirrored below and on the right until height and width are multiples; any size, even one pixel, any dtype."""
    multiple = check_whole("multiple", multiple, 1)
    height, width = x.shape[-2:]
    padding = Padding(-height % multiple, -width % multiple)
    rows, columns = _mirror(height, padding.bottom, x.device), _mirror(width, padding.right, x.device)
    return x.index_select(-2, rows).index_select(-1, columns), padding


def _mirror(length: int, extra: int, device: torch.device) -> Tensor:
    # 0 1 2 | 2 1 0 | 0 1 ...: repeats as often as needed, where torch's reflection stops at the image's own size.
    index = torch.arange(length + extra, device=device) % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def unpad(x: Shaped[Tensor, "b c H W"], padding: Padding) -> Shaped[Tensor, "b c h w"]:
    """What `pad_to_multiple` was given, to the bit."""
    height, width = x.shape[-2] - padding.bottom, x.shape[-1] - padding.right
    if height < 1 or width < 1:
        raise InputError(f"tensor of shape {tuple(x.shape)} is not larger than its {padding}")
    return x[..., :height, :width]
