"""Pictures between programs: files in base64, and the size of what strangers send, read before any pixel is."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image

from channelvq.errors import InputError

Format = Literal["png", "webp", "jpeg"]
MOST_PIXELS = 2**24


def to_base64(image: Image.Image, kind: Format) -> str:
    """A file of it."""
    file = BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "jpeg" else {"lossless": True} if kind == "webp" else {}))
    return base64.b64encode(file.getvalue()).decode()


def data_url(encoded: str, kind: Format) -> str:
    """The file as an address that holds it."""
    return f"data:image/{kind};base64,{encoded}"


def check_pixels(source: bytes | Path, name: str) -> None:
    """InputError for more than MOST_PIXELS: a small file may hold a picture that fills the memory.

    What else is wrong with a file is said where it is read.
    """
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
    except Exception:
        return
    if width * height > MOST_PIXELS:
        raise InputError(f"{name}: {width} x {height} pixels are more than the {MOST_PIXELS} allowed")
