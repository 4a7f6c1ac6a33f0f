"""Pictures between clients and the model: base64 of files. No path and no address is ever followed."""

import base64
import binascii
from io import BytesIO

from PIL import Image

from channelvq.serve.errors import RefusedError
from channelvq.serve.schemas import Format

MOST_PIXELS = 2**24


def to_base64(image: Image.Image, kind: Format) -> str:
    """A file of it."""
    file = BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "jpeg" else {"lossless": True} if kind == "webp" else {}))
    return base64.b64encode(file.getvalue()).decode()


def data_url(encoded: str, kind: Format) -> str:
    """The file as an address that holds it."""
    return f"data:image/{kind};base64,{encoded}"


def from_base64(text: str, number: int) -> bytes:
    """The bytes of a file, given in base64 or as a data: URL."""
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise RefusedError(400, f"images.{number}: a data: URL must be in base64", param="images")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(
            400, f"images.{number}: expected the bytes of an image file in base64, or a data: URL", param="images"
        ) from None
    _check_pixels(data, number)
    return data


def _check_pixels(data: bytes, number: int) -> None:
    """A small file may hold a picture that fills the memory: its size is read before any pixel is."""
    try:
        with Image.open(BytesIO(data)) as image:
            width, height = image.size
    except Exception:  # what is wrong with it is said where it is read
        return
    if width * height > MOST_PIXELS:
        raise RefusedError(
            400, f"images.{number}: {width} x {height} pixels are more than the {MOST_PIXELS} allowed", param="images"
        )
