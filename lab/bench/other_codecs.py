"""JPEG, WebP, AVIF and JPEG XL at a budget of whole bytes: the best of some scales and qualities for each image.

Unlike `channelvq.evaluate.codecs`, which gives baselines every benefit of the doubt, headers are counted here as well:
a file is a file. JPEG XL needs the package pillow-jxl-plugin.
"""

import io
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from channelvq.evaluate import codecs
from channelvq.images import to_pil, to_tensor

SCALES = (1, 2, 4, 8)
QUALITIES = (0, 2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90)
FORMATS = {
    "jpeg": ("JPEG", {"optimize": True}),
    "webp": ("WEBP", {"method": 6}),
    "avif": ("AVIF", {"speed": 4}),
    "jxl": ("JXL", {"effort": 7}),
}


@dataclass(frozen=True)
class Candidate:
    """One file of an image. payload: its bytes without headers. squared_error: mean, of 8-bit pixels."""

    size: int
    payload: int
    squared_error: float
    pixels: np.ndarray


def have(name: str) -> bool:
    """Whether Pillow can write a format here."""
    if name == "jxl":
        try:
            import_module("pillow_jxl")
        except ImportError:
            return False
    Image.init()
    return FORMATS[name][0] in Image.SAVE


def candidates(image: Tensor, name: str) -> list[Candidate]:
    """Files of an image (3, h, w), uint8, at every scale and quality."""
    original, files = to_pil(image[None])[0], list[Candidate]()
    for scale in SCALES:
        size = max(1, original.width // scale), max(1, original.height // scale)
        small = original.resize(size, Image.Resampling.LANCZOS)
        for quality in QUALITIES:
            kind, options = FORMATS[name]
            stream = io.BytesIO()
            small.save(stream, kind, quality=max(1, quality), **options)
            data = stream.getvalue()
            with Image.open(io.BytesIO(data)) as opened:
                decoded = opened.convert("RGB").resize(original.size, Image.Resampling.BICUBIC)
            pixels = np.asarray(decoded)
            error = float(np.square(pixels.astype(np.float64) - np.asarray(original)).mean())
            files.append(Candidate(len(data), _payload(name, data), error, pixels))
    return files


def best(files: list[list[Candidate]], budget: float, headers: bool) -> tuple[Tensor, list[Candidate], float]:
    """For each image the best file within the budget, or its smallest: pixels (n, 3, h, w), files, share that fits."""
    chosen, fitting = list[Candidate](), 0
    for options in files:
        fits = [file for file in options if (file.size if headers else file.payload) <= budget]
        fitting += bool(fits)
        chosen.append(min(fits, key=lambda file: file.squared_error) if fits else min(options, key=lambda f: f.size))
    images = torch.stack([to_tensor(Image.fromarray(file.pixels)) for file in chosen])
    return images, chosen, fitting / len(files)


def _payload(name: str, data: bytes) -> int:
    """JPEG: scan data. WebP: frame data. AVIF: the contents of its box mdat. JPEG XL: all but the signature."""
    match name:
        case "jpeg":
            return codecs._jpeg_payload(data)
        case "webp":
            return codecs._webp_payload(data)
        case "avif":
            at = 0
            while at + 8 <= len(data):
                length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
                if kind == b"mdat":
                    return (length or len(data) - at) - 8
                at += length or len(data)
            return len(data)
    return len(data) - 2
