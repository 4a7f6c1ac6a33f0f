"""JPEG and WebP at a budget of bytes, as baselines.

They are given every benefit of the doubt, so that a gain over them is a gain: headers and tables are not counted, nor
what would tell a decoder the size and quality that were chosen for each image.
"""

import io
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from PIL import Image
from torch import Tensor

from channelvq.evaluate.metrics import check_images
from channelvq.evaluate.pca import check_budget
from channelvq.images import to_tensor

PROTOCOL = {
    "jpeg": "Pillow, best PSNR over downscaling by 1, 2, 4, 8 (Lanczos down, bicubic up), 4:2:0 and 4:4:4, quality "
    "1..95; only entropy-coded scan data counted, no headers, tables, size or quality",
    "webp": "Pillow, lossy, method 6, best PSNR over downscaling by 1, 2, 4, 8 (Lanczos down, bicubic up), quality "
    "0..100; RIFF and VP8 chunk headers and the 10-byte frame header not counted",
}
_SCALES = (1, 2, 4, 8)
_NEIGHBOURS = 4  # PSNR is not quite monotone in quality: these many qualities below the largest that fits are tried too
_Settings = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class CodecResult:
    """Images after a codec, the bytes of each, and whether they fit; where not, it is the smallest file possible."""

    images: UInt8[Tensor, "n 3 h w"]
    num_bytes: Int64[Tensor, " n"]
    fits: Bool[Tensor, " n"]


def jpeg(images: UInt8[Tensor, "n 3 h w"], num_bytes: int) -> CodecResult:
    """The best JPEG of each image whose scan data fit num_bytes: see PROTOCOL["jpeg"]; raises InputError."""
    return _run_codec(images, num_bytes, _JPEG)


def webp(images: UInt8[Tensor, "n 3 h w"], num_bytes: int) -> CodecResult:
    """The best lossy WebP of each image whose payload fits num_bytes: see PROTOCOL["webp"]; raises InputError."""
    return _run_codec(images, num_bytes, _WEBP)


@dataclass(frozen=True)
class _Codec:
    """format and settings: for Pillow. payload: bytes of a file that are charged for."""

    format: str
    settings: tuple[_Settings, ...]
    qualities: range
    payload: Callable[[bytes], int]

    def encode(self, image: Image.Image, quality: int, settings: _Settings) -> bytes:
        file = io.BytesIO()
        image.save(file, self.format, quality=quality, **settings)
        return file.getvalue()


def _jpeg_payload(data: bytes) -> int:
    """Bytes between the SOS header and the EOI marker of a baseline JPEG."""
    at = 2
    while data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data) - at - 2


def _webp_payload(data: bytes) -> int:
    """Bytes of the VP8 chunk behind its frame tag, start code and dimensions (RFC 6386, 9.1)."""
    at = 12
    while data[at : at + 4] != b"VP8 ":
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return int.from_bytes(data[at + 4 : at + 8], "little") - 10


_JPEG = _Codec("JPEG", ({"subsampling": "4:2:0"}, {"subsampling": "4:4:4"}), range(1, 96), _jpeg_payload)
_WEBP = _Codec("WEBP", ({"method": 6},), range(101), _webp_payload)


def _run_codec(images: Tensor, num_bytes: int, codec: _Codec) -> CodecResult:
    check_images(images)
    check_budget(num_bytes)
    outputs, sizes = [], []
    for image in images:
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        data = _best_file(pixels, num_bytes, codec)
        outputs.append(to_tensor(_decode(data, (image.shape[2], image.shape[1]))))
        sizes.append(codec.payload(data))
    used = torch.tensor(sizes)
    return CodecResult(torch.stack(outputs).contiguous(), used, used <= num_bytes)


def _best_file(pixels: np.ndarray, num_bytes: int, codec: _Codec) -> bytes:
    """The file of least squared error within the budget, or the smallest of all where none is."""
    ladders = [
        _fitting_files(image, num_bytes, codec, settings)
        for image in _downscaled(pixels)
        for settings in codec.settings
    ]
    fitting = [data for _, files in ladders for data in files]
    if not fitting:
        return min((smallest for smallest, _ in ladders), key=codec.payload)
    return min(fitting, key=lambda data: _squared_error(data, pixels))


def _fitting_files(image: Image.Image, num_bytes: int, codec: _Codec, settings: _Settings) -> tuple[bytes, list[bytes]]:
    """The file of the lowest quality; those of the largest quality that fits (by bisection) and of the few below it."""
    files: dict[int, bytes] = {}

    def fits(index: int) -> bool:
        if index not in files:
            files[index] = codec.encode(image, codec.qualities[index], settings)
        return codec.payload(files[index]) <= num_bytes

    if not fits(0):
        return files[0], []
    count = bisect_left(range(len(codec.qualities)), True, key=lambda index: not fits(index))
    return files[0], [files[i] for i in range(max(0, count - 1 - _NEIGHBOURS), count) if fits(i)]


def _downscaled(pixels: np.ndarray) -> list[Image.Image]:
    image = Image.fromarray(pixels)
    sizes = [(max(1, round(image.width / s)), max(1, round(image.height / s))) for s in _SCALES]
    return [image if size == image.size else image.resize(size, Image.Resampling.LANCZOS) for size in sizes]


def _decode(data: bytes, size: tuple[int, int]) -> Image.Image:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _squared_error(data: bytes, pixels: np.ndarray) -> float:
    decoded = np.asarray(_decode(data, (pixels.shape[1], pixels.shape[0])), dtype=np.float32)
    return float(np.square(decoded - pixels).mean())
