"""Moving pictures of files as frames that are evenly spaced in time: animations by Pillow, other video by PyAV."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageSequence

from channelvq.checks import check_whole_number
from channelvq.errors import InputError
from channelvq.files import is_stream, replace_file
from channelvq.images.load import name_of, opened
from channelvq.images.profiles import profile_to_srgb

ClipInput = str | Path | bytes | Image.Image
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"})
CLIP_SUFFIXES = VIDEO_SUFFIXES | {".webp", ".gif", ".apng"}  # of a folder; .png and .avif are mostly stills
MOST_FRAMES = 1024  # that a clip may be asked to have
HELD = 512  # frames of a file that are in memory at once


@dataclass(frozen=True)
class Clip:
    """frames: in time. seconds: from the first frame to the end of the last of the file; 0 where it does not say."""

    frames: list[Image.Image]
    seconds: float


class _Frame(NamedTuple):
    start: float  # milliseconds from the first frame
    length: float
    picture: Image.Image  # RGB or RGBA


def read_clip(
    source: ClipInput, count: int, change: Callable[[Image.Image], Image.Image] = lambda frame: frame
) -> Clip:
    """`count` frames of an animation or a video: frame i is what is shown at i/count of its time, so 0 is the first.

    source: a file, or the bytes of an animation. change: of each frame, RGB or RGBA, as soon as it is read: what makes
    it small. At most 512 changed frames are held: of a longer file every second one, every fourth, ... A still picture
    is a clip that stands still. Raises InputError that names a file which cannot be read.
    """
    count = check_whole_number("frames of a clip", count, 1, MOST_FRAMES)
    held: list[tuple[float, Image.Image]] = []
    every, end = 1, 0.0
    for number, frame in enumerate(_frames(source)):
        end = frame.start + frame.length
        if number % every == 0 and len(held) == HELD:
            held, every = held[::2], 2 * every
        if number % every == 0:
            held.append((frame.start, change(frame.picture)))
    if not held:
        raise InputError(f"cannot read {name_of(source)}: it holds no frame")
    starts = [start for start, _ in held] if end > 0 else [i / len(held) for i in range(len(held))]
    # The least part of a millisecond more: i/count of the time is rounded, and may be the start of a frame.
    shown = (bisect_right(starts, i * (end or 1.0) / count + 1e-6) - 1 for i in range(count))
    return Clip([held[i][1] for i in shown], end / 1000)


def save_clip(frames: Sequence[Image.Image], path: str | Path, seconds: float) -> None:
    """Write frames as an animation that begins again (.webp or .gif), whole or not at all; seconds: of all of them.

    Raises InputError for no frames, another suffix, and a place that cannot be written.
    """
    path, suffixes = Path(path), {".webp": {"quality": 90, "method": 4}, ".gif": {}}
    if not frames or path.suffix.lower() not in suffixes or not 0 < seconds < 3600:
        given = f"{len(frames)} frames of {seconds!r} seconds as {str(path)!r}"
        raise InputError(f"save_clip: expected frames, seconds above 0 and a .webp or .gif, got {given}")
    settings = {"save_all": True, "append_images": list(frames[1:]), "loop": 0, **suffixes[path.suffix.lower()]}
    duration = max(1, round(1000 * seconds / len(frames)))
    kind = path.suffix[1:].upper()
    try:
        replace_file(path, lambda place: frames[0].save(place, kind, duration=duration, **settings))
    except OSError as error:
        raise InputError(f"cannot save {str(path)!r}: {error}") from error


def check_clip(source: ClipInput) -> None:
    """InputError where not even the first frame can be read."""
    if not list(islice(_frames(source), 1)):
        raise InputError(f"cannot read {name_of(source)}: it holds no frame")


def _frames(source: ClipInput) -> Iterator[_Frame]:
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() in VIDEO_SUFFIXES:
        yield from _video_frames(Path(source))
        return
    start = 0.0
    with opened(source) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()  # Pillow knows how long a frame is shown when it has read it
            length = float(image.info.get("duration") or 0)
            yield _Frame(start, length, _in_colour(frame))
            start += length


def _in_colour(frame: Image.Image) -> Image.Image:
    """A copy of a frame as sRGB, or with its transparency as RGBA."""
    to_srgb = profile_to_srgb(frame)
    if not frame.has_transparency_data:
        return frame.convert("RGB") if to_srgb is None else to_srgb(frame.convert("RGB"))
    clear = frame.convert("RGBA")
    if to_srgb is None:
        return clear
    alpha, clear = clear.getchannel("A"), to_srgb(clear.convert("RGB"))
    clear.putalpha(alpha)
    return clear


def _video_frames(path: Path) -> Iterator[_Frame]:
    name = name_of(path)
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise InputError(f"{name}: video needs the package av: pip install 'channelvq[video]'") from None
    if is_stream(path):  # which could be waited for without end
        raise InputError(f"cannot read {name}: it is a pipe or a device, expected a file")
    if not path.is_file():
        raise InputError(f"cannot read {name}: no such file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"cannot read {name}: it holds no video")
            first: float | None = None
            for frame in container.decode(video=0):
                rate = container.streams.video[0].average_rate
                start = 1000 * (frame.time or 0.0)
                first = start if first is None else first
                yield _Frame(start - first, float(1000 / rate) if rate else 0.0, frame.to_image())
    except (FFmpegError, OSError, ValueError) as error:
        raise InputError(f"cannot read {name}: it is broken or no video ({error})") from None
