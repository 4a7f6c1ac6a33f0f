"""Animated WebP and H.264 of small clips at a budget of bytes, given every benefit of the doubt.

Of each clip all files of some scales and qualities are made once; at a budget the one of least squared error counts
that fits, or the smallest of all where none does. What every file has alike is not charged for: containers, headers,
parameter sets, places of frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from channelvq.errors import InputError
from channelvq.images import to_pil, to_tensor

SCALES = (1, 2, 4)
QUALITIES = (0, 5, 10, 20, 30, 45, 60, 75, 90)
RATES = (18, 22, 26, 30, 34, 38, 42, 46, 51)  # x264's constant rate factors
FRAME_HEADER = {b"VP8 ": 10, b"VP8L": 5, b"ALPH": 0}  # bytes at the head of a WebP bitstream that are not charged
PROTOCOL = {
    "webp": "animated WebP by Pillow, lossy, method 6, best PSNR over downscaling by 1, 2, 4 and qualities "
    f"{', '.join(map(str, QUALITIES))}; image data of the frames alone counted",
    "h264": "libx264 by PyAV, preset veryslow, tune psnr, 4:2:0, best PSNR over downscaling by 1, 2, 4 and constant "
    f"rate factors {', '.join(map(str, RATES))}; slices alone counted, no container, no parameter sets",
}


@dataclass(frozen=True, eq=False)
class Coded:
    """A clip after a codec, and the bytes that it is charged for."""

    clip: UInt8[Tensor, "T 3 h w"]
    num_bytes: int


def ladder(clip: UInt8[Tensor, "T 3 h w"], codec: str) -> list[Coded]:
    """All files of a clip by a codec of PROTOCOL; InputError where the package av is missing."""
    frames = to_pil(clip)
    encode = _webp_files if codec == "webp" else _h264_files
    coded: list[Coded] = []
    for scale in SCALES:
        size = (max(2, frames[0].width // scale), max(2, frames[0].height // scale))
        small = [frame if scale == 1 else frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
        for pictures, num_bytes in encode(small):
            shown = [p if p.size == frames[0].size else p.resize(frames[0].size, Image.Resampling.BICUBIC)
                     for p in pictures]  # fmt: skip
            coded.append(Coded(torch.stack([to_tensor(picture) for picture in shown]), num_bytes))
    return coded


def best(files: Sequence[Coded], clip: UInt8[Tensor, "T 3 h w"], num_bytes: int) -> Coded:
    """The file of least squared error within the budget; the smallest where none fits."""
    fitting = [file for file in files if file.num_bytes <= num_bytes]
    if not fitting:
        return min(files, key=lambda file: file.num_bytes)
    return min(fitting, key=lambda file: float((file.clip.double() - clip.double()).square().mean()))


def _webp_files(frames: list[Image.Image]) -> Iterator[tuple[list[Image.Image], int]]:
    for quality in QUALITIES:
        file = BytesIO()
        frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=100, quality=quality, method=6)
        with Image.open(BytesIO(file.getvalue())) as image:
            pictures = []
            for number in range(len(frames)):
                # Frames that are alike may have been made one.
                image.seek(min(number, getattr(image, "n_frames", 1) - 1))
                pictures.append(image.convert("RGB"))
        yield pictures, webp_payload(file.getvalue())


def webp_payload(data: bytes) -> int:
    """Bytes of the image data of all frames of a WebP file."""
    return _payload(data, 12, len(data))


def _payload(data: bytes, at: int, end: int) -> int:
    total = 0
    while at + 8 <= end:
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"ANMF":  # place, size and time of a frame, then chunks of its own
            total += _payload(data, at + 8 + 16, at + 8 + size)
        elif name in FRAME_HEADER:
            total += size - FRAME_HEADER[name]
        at += 8 + size + size % 2
    return total


def _h264_files(frames: list[Image.Image]) -> Iterator[tuple[list[Image.Image], int]]:
    av = _av()
    for rate in RATES:
        file, total = BytesIO(), 0
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
            stream.options = {"crf": str(rate), "preset": "veryslow", "tune": "psnr"}
            shown = [av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24") for frame in frames]
            for frame in (*shown, None):
                for packet in stream.encode(frame):
                    total += slices(bytes(packet))
                    container.mux(packet)
        with av.open(BytesIO(file.getvalue())) as container:
            pictures = [frame.to_image() for frame in container.decode(video=0)]
        yield pictures, total


def slices(packet: bytes) -> int:
    """Bytes of the coded pictures in a packet of H.264: not of what x264 tells of itself, nor of start codes."""
    # Annex B: units between start codes; the lowest five bits of the first byte are the kind (1 and 5: slices).
    units = (unit.rstrip(b"\0") for unit in packet.split(b"\0\0\1")[1:])
    return sum(len(unit) for unit in units if unit and unit[0] & 31 in (1, 5))


def _av() -> Any:
    try:
        import av  # type: ignore[import-not-found]
    except ImportError:
        raise InputError("H.264 needs the package av: pip install 'channelvq[video]'") from None
    return av
