"""Any image file, array or tensor as 8-bit RGB, or a refusal that says why."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from channelvq.errors import InputError
from channelvq.files import is_stream
from channelvq.images.profiles import Convert, profile_to_srgb
from channelvq.images.tensors import RANGE_TOLERANCE, check_one, to_pil
from channelvq.terminal import READING

ImageInput = str | Path | bytes | Image.Image | np.ndarray | Tensor
Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
LARGE = 2**24  # pixels; larger pictures are decoded one at a time, however many threads there are
BAND = 2**20  # pixels that are converted at once
_LARGE = threading.Lock()
_WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


class FirstFrameWarning(UserWarning):
    """An animation or a file of several pages was given where one image is used."""


def load_image(source: ImageInput, *, background: Color = WHITE) -> Image.Image:
    """Any image as 8-bit RGB.

    Paths, the bytes of a file and PIL images are turned upright by their EXIF entry; transparency is composited on
    `background`; colours of another profile (Display P3, Adobe RGB, ...) become those of sRGB; 16-bit gray (modes I;16
    and I, 0..65535) and float gray (mode F, 0..1) are scaled to 8 bit by rounding (Pillow itself reads only the high
    byte of 16-bit *colour* files). Of an animation the first frame is taken, with a `FirstFrameWarning`. Arrays:
    (H, W) or (H, W, 1 | 3 | 4); bool, uint8, uint16 or float in [0, 1]. Tensors: (3, H, W) or (1, 3, H, W); uint8 or
    float in [-1, 1].
    Raises InputError naming the source for what is missing, empty, truncated, broken, absurdly large or ambiguous.
    """
    if isinstance(source, Tensor):
        return to_pil(check_one(source))[0]
    if isinstance(source, np.ndarray):
        return _array_to_rgb(source, background, f"array of shape {source.shape}, {source.dtype}")
    with opened(source) as image:
        image.load()
        if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a phone's photo with its preview
            text = f"{name_of(source)} has several frames: only number {image.tell() + 1} is used"
            warnings.warn(text, FirstFrameWarning, stacklevel=2)
        return _to_rgb(ImageOps.exif_transpose(image), background, name_of(source))


@contextmanager
def opened(source: str | Path | bytes | Image.Image) -> Iterator[Image.Image]:
    """The opened image; whatever goes wrong with it in the `with` block leaves as an InputError that names it."""
    if not isinstance(source, (str, Path, bytes, Image.Image)):
        raise InputError(
            f"cannot read an image from a {type(source).__name__}: give a path, the bytes of an image file, "
            "a PIL image, a numpy array (H, W, 3) or a tensor (3, H, W)"
        )
    told = READING.set(name_of(source))
    try:
        if isinstance(source, Image.Image):
            yield _nonempty(source)
        elif not isinstance(source, bytes) and is_stream(Path(source)):  # which could be waited for without end
            raise InputError(f"cannot read {name_of(source)}: it is a pipe or a device, expected a file")
        else:
            with (
                Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image,
                _LARGE if image.width * image.height > LARGE else nullcontext(),
            ):
                yield _nonempty(image)
    except (InputError, FirstFrameWarning):
        raise
    except Exception as error:  # Pillow's decoders raise any type (SyntaxError, struct.error, ...) on broken bytes
        raise InputError(f"cannot read {name_of(source)}: {_reason(source, error)}") from error
    finally:
        READING.reset(told)


def _nonempty(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"it has no pixels ({image.width} x {image.height})")
    return image


def name_of(source: str | Path | bytes | Image.Image) -> str:
    """What errors call it."""
    if isinstance(source, bytes):
        return f"image of {len(source)} bytes"
    if isinstance(source, Image.Image):
        filename = getattr(source, "filename", "")
        return f"PIL image {filename or f'{source.width} x {source.height}, mode {source.mode}'}"
    return f"image file {str(source)!r}"


def _reason(source: object, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a folder, not an image"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too many pixels ({error}); if it is trusted, raise PIL.Image.MAX_IMAGE_PIXELS"
    if isinstance(error, UnidentifiedImageError):
        empty = source == b"" if isinstance(source, bytes) else Path(str(source)).stat().st_size == 0
        return "it is empty" if empty else "it is not an image that Pillow can identify"
    return f"it is broken or incomplete ({str(error) or type(error).__name__})"


def _to_rgb(image: Image.Image, background: Color, name: str) -> Image.Image:
    """Band by band: what stands between a picture and its RGB may take ten times their memory."""
    if image.mode == "RGB" and not image.has_transparency_data and "icc_profile" not in image.info:
        return image
    to_srgb = profile_to_srgb(image)
    rgb = Image.new("RGB", image.size)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_band_to_rgb(band, background, name, to_srgb), (0, top))
    return rgb


def _band_to_rgb(image: Image.Image, background: Color, name: str, to_srgb: Convert | None) -> Image.Image:
    if image.mode in _WIDE_MODES:  # Pillow's convert() clips these to 255 instead of scaling
        values = np.asarray(image)
        if image.mode != "F":
            values = _checked(values, 0, 65535, name).astype(np.uint16)
        gray = _to_uint8_array(values, name)
        key = image.info.get("transparency")
        alpha = np.full_like(gray, 255) if key is None else np.where(values == key, 0, 255).astype(np.uint8)
        return _composite(Image.fromarray(np.stack([gray, gray, gray, alpha], axis=-1)), background)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if to_srgb is not None:
            alpha = image.getchannel("A")
            image = to_srgb(image.convert("RGB"))
            image.putalpha(alpha)
        return _composite(image, background)
    if to_srgb is not None:
        return to_srgb(image if image.mode == "CMYK" else image.convert("RGB"))
    return image.convert("RGB")


def _composite(image: Image.Image, background: Color) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")


def _array_to_rgb(array: np.ndarray, background: Color, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise InputError(
            f"{name}: expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) without a zero; "
            "move channels last, give a batch as a list"
        )
    return _to_rgb(Image.fromarray(_to_uint8_array(array, name)), background, name)


def _to_uint8_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257: exact rounding
    if array.dtype.kind == "f":
        unit = _checked(array, 0, 1, name, RANGE_TOLERANCE).astype(np.float64)
        return np.rint(unit.clip(0, 1) * 255).astype(np.uint8)
    raise InputError(f"{name}: expected uint8, uint16, bool or float values; convert it, e.g. astype(numpy.uint8)")


def _checked(array: np.ndarray, low: int, high: int, name: str, tolerance: float = 0.0) -> np.ndarray:
    least, most = array.min(), array.max()
    if not (least >= low - tolerance and most <= high + tolerance):  # written so that NaN fails as well
        raise InputError(f"{name}: values from {least} to {most}, expected [{low}, {high}]; scale it first")
    return array
