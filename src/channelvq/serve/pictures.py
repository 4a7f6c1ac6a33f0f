"""Pictures that clients send: base64 of files. No path and no address is ever followed."""

import base64
import binascii

from channelvq.errors import InputError
from channelvq.images.encoded import check_pixels
from channelvq.serve.errors import RefusedError


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
    try:
        check_pixels(data, f"images.{number}")
    except InputError as error:
        raise RefusedError(400, str(error), param="images") from None
    return data
