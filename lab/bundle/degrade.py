"""Images made worse in the ways that reconstructions and compressed files are, or in other colours.

For what must know things regardless.
"""

from collections.abc import Sequence
from io import BytesIO

import torch
from jaxtyping import UInt8
from PIL import Image, ImageFilter
from torch import Tensor

from channelvq.images import to_pil, to_tensor

SHARE = 0.3  # of the images that each kind of damage comes to
BLUR = 1.6  # the largest sigma of a blur, in pixels of a 64 px image
SMALLEST = 0.4  # the smallest side, of the full one, that an image is reduced to and enlarged from
QUALITY = (15, 60)  # of JPEG
NOISE = 12.0  # the largest standard deviation, of 255
MOST_SATURATION = 1.5  # times its own
GAMMA = 2.5  # the brightness is raised to a power between its inverse and it


def degrade(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """An RGB image, perhaps blurred, reduced and enlarged, JPEG-compressed and noisy, by what is drawn."""
    draws = torch.rand(8, generator=generator).tolist()
    width, height = image.size
    if draws[0] < SHARE:
        image = image.filter(ImageFilter.GaussianBlur(BLUR * draws[1] * width / 64))
    if draws[2] < SHARE:
        scale = SMALLEST + (1 - SMALLEST) * draws[3]
        small = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        image = small.resize((width, height), Image.Resampling.BICUBIC)
    if draws[4] < SHARE:
        image = _compressed(image, round(QUALITY[0] + (QUALITY[1] - QUALITY[0]) * draws[5]))
    return _noisy(image, NOISE * draws[7], generator) if draws[6] < SHARE else image


def degraded(images: UInt8[Tensor, "n 3 h w"], generators: Sequence[torch.Generator]) -> UInt8[Tensor, "n 3 h w"]:
    """Every image made worse by what its own generator draws."""
    pairs = zip(to_pil(images), generators, strict=True)
    return torch.stack([to_tensor(degrade(image, generator)) for image, generator in pairs])


def shift_colours(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """An RGB image with its hues turned by any angle, more or less saturated, brighter or darker, by what is drawn."""
    turn, saturation, brightness = torch.rand(3, generator=generator).tolist()
    hue, grey, value = image.convert("HSV").split()
    turned = hue.point([(level + round(256 * turn)) % 256 for level in range(256)])
    scale, power = MOST_SATURATION * saturation, GAMMA ** (2 * brightness - 1)
    paler = grey.point([min(255, round(level * scale)) for level in range(256)])
    brighter = value.point([round(255 * (level / 255) ** power) for level in range(256)])
    return Image.merge("HSV", (turned, paler, brighter)).convert("RGB")


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    stream = BytesIO()
    image.save(stream, "JPEG", quality=quality)
    with Image.open(stream) as file:
        return file.convert("RGB")


def _noisy(image: Image.Image, deviation: float, generator: torch.Generator) -> Image.Image:
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float()
    noise = torch.randn(pixels.shape, generator=generator) * deviation
    return Image.frombytes("RGB", image.size, bytes((pixels + noise).round().clamp(0, 255).to(torch.uint8).numpy()))
