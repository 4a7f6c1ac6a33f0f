"""Tar shards in the layout of webdataset as a source: any sample is read by its number, straight from its place.

    train-00000.tar: cat.jpg cat.txt dog.png dog.json ...

Nothing is streamed: the indices (data/files/shard_index.py) say where each sample lies, so shards are shuffled, shared
among ranks and workers and resumed by position like every other source (docs/decisions/0007).
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass
from webdataset.shardlists import expand_urls

from channelvq.config import STRICT
from channelvq.data.files.collection import Collection
from channelvq.data.files.remote import RemotePath, is_remote, remote_path, states_of
from channelvq.data.files.shard_index import NONE, ShardIndex, ShardPath, index_shard, parse_caption
from channelvq.data.options import ImageOptions, SplitOrAll
from channelvq.data.split import Split, split_mask
from channelvq.errors import InputError
from channelvq.images import Skipped, load_image
from channelvq.terminal import progress_bar

SHOWN = 3  # missing shards that an error names


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ShardsConfig(ImageOptions):
    """The images and captions of the tar shards `urls`, such as "data/train-{00000..00256}.tar".

    urls: of the shards, braces for numbers: files, or behind http://, https:// and s3:// (extra remote).
    validation_urls, test_urls: shards of these splits, where they are given; `urls` then has no share of them.
    caption_field: of .json members. captioned: leave out images without a caption.
    """

    urls: str
    kind: Literal["shards"] = "shards"
    weight: NonNegativeFloat = 1.0
    validation_urls: str | None = None
    test_urls: str | None = None
    caption_field: str = "caption"
    captioned: bool = False

    def build(self, size: int, split: Split) -> "ShardSource":
        """The source of one split, with images of size x size."""
        urls, share, options = self.place(split, self.urls, self.validation_urls, self.test_urls)
        return ShardSource(urls, size, share, options, caption_field=self.caption_field, captioned=self.captioned)


class ShardSource(Collection):
    """The images of tar shards with the captions beside them.

    urls: paths or addresses (http, https, s3) of the shards, with braces for numbers, "data/train-{00000..00256}.tar",
    and :: between several. What lies elsewhere is read by its range where data/files/remote.py has no copy. Each
    sample is one image (.jpg, .png, .webp, ...) and perhaps a caption: a .txt member of the same name, or the field
    `caption_field` of a .json member. size: side of the square samples. split: which share to use, by the hash of the
    image's name, which is a sample's key. captioned: leave out images without a caption.
    skipped: what is left out of all splits: images that cannot be decoded, captions without an image, shards without
    an image; with reasons. A SkippedFilesWarning counts them.
    Raises InputError for a shard that is missing, compressed or cut off, and for an empty split.
    """

    def __init__(
        self,
        urls: str,
        size: int,
        split: SplitOrAll = "train",
        options: ImageOptions | None = None,
        *,
        caption_field: str = "caption",
        captioned: bool = False,
    ) -> None:
        super().__init__(f"shards {urls!r}", size, split, options)
        self.caption_field = caption_field
        indices = _indices(shard_paths(urls), caption_field)
        samples = np.concatenate([index.samples for index in indices])
        shards = np.repeat(np.arange(len(indices), dtype=np.int32), [len(index.samples) for index in indices])
        self.skipped = list(_left_out(indices))
        self._shards = [replace(index, samples=samples[:0].copy(), skipped=()) for index in indices]  # not all twice
        if captioned:
            bare = samples["text_kind"] == NONE
            self.skipped += [
                _skipped(self._shards[shard], sample, "it has no caption")
                for shard, sample in zip(shards[bare], samples[bare], strict=True)
            ]
            samples, shards = samples[~bare], shards[~bare]
        self._report_skipped(len(samples))
        shares = self.options.validation, self.options.test
        chosen = self._chosen(len(samples), lambda split: split_mask(samples["split_number"], split, *shares))
        self._samples, self._shard_of = samples[chosen], shards[chosen]

    def __len__(self) -> int:
        return len(self._samples)

    def stamp(self) -> str:
        """Digest of the shards' names, sizes and times of change."""
        return sha256(repr([(str(shard.path), shard.stamp) for shard in self._shards]).encode()).hexdigest()

    def _read(self, index: int) -> tuple[Image.Image, str, str]:
        sample, shard = self._samples[index], self._shards[self._shard_of[index]]
        picture = load_image(shard.read(int(sample["image"]), int(sample["image_size"])))
        text = ""
        if sample["text_kind"] != NONE:
            content = shard.read(int(sample["text"]), int(sample["text_size"]))
            text = parse_caption(content, int(sample["text_kind"]), self.caption_field)
        return picture, text, shard.key(sample)


def shard_paths(urls: str) -> list[ShardPath]:
    """The files and addresses that `urls` names, braces expanded; InputError for what is neither, or missing."""
    try:
        names = expand_urls(urls)
        paths = [remote_path(name) if is_remote(name) else Path(name).expanduser() for name in names]
    except InputError:
        raise
    # A variable of the environment that is not set, a brace without its other half, a home that is nobody's.
    except (AssertionError, ValueError, RuntimeError) as error:
        example = "data/train-{00000..00256}.tar"
        raise InputError(f"shards {urls!r}: {error}; expected paths such as {example!r}") from None
    gone = {str(path) for path in states_of([path for path in paths if isinstance(path, RemotePath)])}
    if missing := [p for p in paths if (str(p) in gone if isinstance(p, RemotePath) else not p.is_file())]:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        listed = ", ".join(str(path) for path in missing[:SHOWN])
        raise InputError(f"shards {urls!r}: {len(missing)} of {len(paths)} files are missing: {listed}{more}")
    return paths


def _indices(paths: Sequence[ShardPath], caption_field: str) -> list[ShardIndex]:
    """The index of each shard, with a bar on a terminal."""
    indices: dict[int, ShardIndex] = {}
    # Processes of one run begin at different shards: what one has indexed, another finds in the cache.
    first = os.getpid() * 7919 % len(paths)
    with progress_bar() as bar:
        for number in bar.track([*range(first, len(paths)), *range(first)], description="indexing shards"):
            indices[number] = index_shard(paths[number], caption_field)
    return [indices[number] for number in range(len(paths))]


def _left_out(shards: Sequence[ShardIndex]) -> Iterator[Skipped]:
    for shard in shards:
        yield from shard.skipped
        if not len(shard.samples) and not shard.skipped:
            yield Skipped(shard.path, f"shard {str(shard.path)!r} holds no image")


def _skipped(shard: ShardIndex, sample: np.void, reason: str) -> Skipped:
    path = shard.path / shard.key(sample)
    return Skipped(path, f"{str(path)!r}: {reason}")
