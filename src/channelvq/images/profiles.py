"""Colour profiles: what the numbers of a picture mean, brought to sRGB, which all pictures here are in."""

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import Any

from PIL import Image, ImageCms

Convert = Callable[[Image.Image], Image.Image]


def profile_to_srgb(image: Image.Image) -> Convert | None:
    """What turns RGB or CMYK parts of a picture into sRGB; None where its numbers are that already.

    A profile that cannot be read, or is not of the picture's mode, says nothing: the numbers are taken as they are.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or image.mode not in ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK"):
        return None
    return _conversion(profile, "CMYK" if image.mode == "CMYK" else "RGB")


@lru_cache(maxsize=16)
def _conversion(profile: bytes, mode: str) -> Convert | None:
    try:
        given = ImageCms.ImageCmsProfile(BytesIO(profile))
        core: Any = given.profile
        if core.xcolor_space.strip() != mode or "srgb" in ImageCms.getProfileDescription(given).lower():
            return None  # through its own profile sRGB would lose its last bit
        transform = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return lambda part: ImageCms.applyTransform(part, transform) or part
