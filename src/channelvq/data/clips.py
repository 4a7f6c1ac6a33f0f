"""Clips: animated emoji with their labels, or a folder of animations and videos of your own.

A sample's `image` is a clip (T, 3, size, size). As with still emoji the label decides on the split, over all packs, so
that no held-out clip is a near copy of a training one.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from channelvq.config import STRICT
from channelvq.data.backdrop import NUM_DRAWS, random_backdrop
from channelvq.data.fetched.catalogue import ANIMATED
from channelvq.data.fetched.emoji import SHORTEST_HELD_SIDE, family, load_labels, normalise
from channelvq.data.fetched.packages import fetch
from channelvq.data.files.listing import Entry
from channelvq.data.options import Shares, SkippedFilesWarning
from channelvq.data.source import Sample
from channelvq.data.split import EmptySplitError, Split, assign_split
from channelvq.errors import InputError
from channelvq.images import resize_crop, to_tensor
from channelvq.images.clips import CLIP_SUFFIXES, MOST_FRAMES, check_clip, read_clip

FRAMES = 9  # a first frame and four groups of two
MOST_HELD = 2**30  # bytes of read frames that a source keeps; further clips are read from their files each time


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ClipsConfig(Shares):
    """Moving pictures of `frames` frames, evenly spaced in time, as clips.

    root: a folder of your own animations (.webp, .gif, .apng, ...) and videos (.mp4, ..., extra `video`), captions in
    .txt files beside them; null: animated emoji on coloured backgrounds. packs: how many of the four packages of those,
    each about 180 MB and of other labels. frames: of a clip; null: those of the model. augment: in the train split, a
    varied scale and place of what has a clear background. stills: each sample is one of the frames, drawn at random, as
    a picture, for tokenizers of pictures.
    """

    kind: Literal["clips"] = "clips"
    root: str | None = None
    packs: Annotated[int, Field(ge=1, le=len(ANIMATED))] = 1
    frames: Annotated[int, Field(ge=1, le=MOST_FRAMES)] | None = None
    augment: bool = True
    stills: bool = False
    weight: NonNegativeFloat = 1.0

    def build(self, size: int, split: Split) -> "ClipSource":
        """The source of one split, with clips (T, 3, size, size), or frames of them."""
        if self.root is None:
            entries, what = emoji_entries(self.packs, self.validation, self.test), "animated emoji"
        else:
            entries, what = folder_clips(self.root), f"clip folder {self.root!r}"
        chosen = [entry for entry in entries if entry.split_by(self.validation, self.test) == split]
        if not chosen:
            raise EmptySplitError(f"{what}: none of {len(entries)} clips is in the {split} split")
        augment = self.augment and split == "train"
        return ClipSource(chosen, size, self.frames or FRAMES, augment=augment, stills=self.stills, what=what)


def emoji_entries(
    packs: int = 1, validation: float = 0.05, test: float = 0.10, cache: Path | str | None = None
) -> list[Entry]:
    """The animated emoji of the first `packs` packages, without skin tones; key: the hexcode, text: the label.

    Fetches the packages when they are missing.
    """
    labels = load_labels(fetch("emojibase-data", cache=cache) / "data.json")
    entries: dict[str, Entry] = {}
    for package in ANIMATED[:packs]:
        for path in sorted((fetch(package.name, cache=cache) / "images").iterdir()):
            code = normalise(path.stem)
            if code in labels and code == labels[code][0] and is_animated(path):
                split = assign_split(family(code), validation, test)
                entries.setdefault(code, Entry(path, code, labels[code][1], split))
    return [entries[code] for code in sorted(entries)]


def is_animated(path: Path) -> bool:
    """Whether a WebP file says in its first bytes that it moves: the packages hold stills as well."""
    with path.open("rb") as file:
        head = file.read(21)
    return head[12:16] == b"VP8X" and bool(head[20] & 2)


def folder_clips(root: str | Path) -> list[Entry]:
    """The animations and videos of a folder and its subfolders, in the order of their paths, which are their keys."""
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"clip folder {str(root)!r}: {'it is a file' if folder.exists() else 'no such folder'}")
    keys = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in CLIP_SUFFIXES)
    keys = [key for key in keys if not any(part.startswith(".") for part in key.parts) and (folder / key).is_file()]
    if not keys:
        raise InputError(f"clip folder {str(root)!r}: no animation or video in it or below (.webp, .gif, .mp4, ...)")
    return [Entry(folder / key, key.as_posix()) for key in keys]


class ClipSource:
    """The clips of a split; a centred square of each frame, where it is clear on a background drawn for the clip.

    skipped: files whose first frame cannot be read, each with its reason. Raises InputError where none can be read.
    """

    def __init__(
        self, entries: Sequence[Entry], size: int, frames: int, *, augment: bool = False, stills: bool = False,
        what: str = "clips",
    ) -> None:  # fmt: skip
        if size < 8:
            raise InputError(f"{what}: size {size} is too small, at least 8 pixels are needed")
        self.size, self.frames, self.augment, self.stills = size, frames, augment, stills
        reasons = {entry.path: reason for entry in entries if (reason := _problem(entry.path))}
        self.entries = [entry for entry in entries if entry.path not in reasons]
        self.skipped = list(reasons.values())
        if not self.entries:
            raise InputError(f"{what}: none of {len(entries)} clips can be read; the first: {self.skipped[0]}")
        if self.skipped:
            text = f"{what}: {len(self.skipped)} of {len(entries)} clips are left out; the first: {self.skipped[0]}"
            warnings.warn(text, SkippedFilesWarning, stacklevel=3)
        self._held: dict[int, list[Image.Image]] = {}
        side = max(size, SHORTEST_HELD_SIDE)
        self._most = MOST_HELD // (frames * 4 * side**2)

    def __len__(self) -> int:
        return len(self.entries)

    def stamp(self) -> str:
        """Digest of the entries, and of their files' sizes and times of change."""
        listed = [[entry.key, entry.text, entry.stamps()] for entry in self.entries]
        return sha256(json.dumps(listed).encode()).hexdigest()

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """Clip `index`: uint8 (T, 3, size, size); background, place and size are drawn from `generator`.

        Of `stills`, one of its frames, drawn as well: (3, size, size).
        """
        draws = torch.rand(NUM_DRAWS + 4, generator=generator).tolist()
        frames, entry = self._frames(index), self.entries[index]
        clear = any(frame.mode == "RGBA" and frame.getextrema()[3][0] < 255 for frame in frames)  # type: ignore[index]
        smaller = self.augment and clear
        side = round(self.size * (0.6 + 0.4 * draws[NUM_DRAWS])) if smaller else self.size
        left, top = (int(draw * (self.size - side + 1)) for draw in draws[NUM_DRAWS + 1 : NUM_DRAWS + 3])
        backdrop = random_backdrop(draws[:NUM_DRAWS]).paint(self.size)
        if self.stills:
            frame = frames[int(draws[-1] * len(frames))]
            return Sample(_placed(frame, backdrop, side, (left, top)), entry.caption(), entry.key)
        clip = torch.stack([_placed(frame, backdrop, side, (left, top)) for frame in frames])
        return Sample(clip, entry.caption(), entry.key)

    def seconds(self, index: int) -> float:
        """How long clip `index` is; 0 where its file does not say."""
        return read_clip(self.entries[index].path, 1, lambda frame: frame.resize((1, 1))).seconds

    def _frames(self, index: int) -> list[Image.Image]:
        """The read frames, kept in memory scaled down to about what is needed."""
        if (kept := self._held.get(index)) is not None:
            return kept
        side = max(self.size, SHORTEST_HELD_SIDE)
        frames = read_clip(self.entries[index].path, self.frames, lambda frame: resize_crop(frame, side)).frames
        if len(self._held) < self._most:
            self._held[index] = frames
        return frames


def _placed(
    frame: Image.Image, backdrop: Image.Image, side: int, corner: tuple[int, int]
) -> UInt8[Tensor, "3 size size"]:
    canvas, scaled = backdrop.copy(), frame.resize((side, side), Image.Resampling.BICUBIC)
    canvas.paste(scaled, corner, scaled if scaled.mode == "RGBA" else None)
    return to_tensor(canvas)


def _problem(path: Path) -> str | None:
    try:
        check_clip(path)
    except InputError as error:
        return str(error)
    return None


def with_frames(config: ClipsConfig, frames: int) -> ClipsConfig:
    """The settings with a number of frames, where they name none."""
    return config if config.frames is not None else replace(config, frames=frames)
