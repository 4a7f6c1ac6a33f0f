"""What is in a folder, a manifest, tar shards or token shards: everything read once, nothing changed, nothing believed.

    folder | manifest | tars -> each picture decoded -> Report: how many, which are broken, sizes, captions, doubles

Unlike the sources, which remember what was good (data/files/checked.py), a check opens every file again.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from channelvq.data.files.checked import BLOCK, decoding
from channelvq.data.files.listing import Entry, folder_entries, manifest_entries
from channelvq.data.files.shard_index import Located, ShardFile, ShardPath, decode, locate, shard_file
from channelvq.data.files.shards import shard_paths
from channelvq.data.files.token_shards import MANIFEST, read_manifest, read_shard_of
from channelvq.data.split import split_number
from channelvq.errors import InputError
from channelvq.images import Skipped, load_image
from channelvq.terminal import progress_bar

Kind = Literal["folder", "manifest", "shards", "tokens"]
LISTED = 20  # broken members, and doubles, that a report names
AT_ONCE = 64  # members of a tar in memory


@dataclass(frozen=True)
class Looked:
    """One picture that can be used. digest: 8 bytes of its file's SHA-256; None where only tokens are left of it."""

    captioned: bool
    width: int = 0
    height: int = 0
    bytes: int = 0
    digest: int | None = None


@dataclass
class Report:
    """What a check found. images: usable ones, captions: how many of them have one.

    broken: what cannot be used, files and members of shards; broken_shards: whole shards that cannot be read. Of both
    the first LISTED, with reasons; *_count: all. same_key: names that come more than once, same_file: names of pictures
    whose bytes an earlier one has; again the first, and how many in all.
    width, height, side: smallest, median and largest in pixels, side: of the shorter one; bytes: of the images' files.
    """

    source: str
    kind: Kind
    images: int = 0
    captions: int = 0
    bytes: int = 0
    shards: int = 0
    width: tuple[int, ...] = ()
    height: tuple[int, ...] = ()
    side: tuple[int, ...] = ()
    broken_count: int = 0
    broken: list[Skipped] = field(default_factory=list)
    broken_shards_count: int = 0
    broken_shards: list[Skipped] = field(default_factory=list)
    same_key_count: int = 0
    same_key: list[str] = field(default_factory=list)
    same_file_count: int = 0
    same_file: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is broken and no name comes twice; missing captions and equal pictures may be meant."""
        return not (self.broken_count or self.broken_shards_count or self.same_key_count)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `cvq data check --json` writes it."""
        listed = {
            name: [{"path": str(entry.path), "reason": entry.reason} for entry in getattr(self, name)]
            for name in ("broken", "broken_shards")
        }
        return {**vars(self), **listed, "without_caption": self.images - self.captions, "sound": self.sound}


def check_source(source: str | Path, *, caption_field: str = "caption") -> Report:
    """Read all of a source once.

    source: a folder of images, of tars (where it holds some and no image) or of token shards; a .jsonl or .csv
    manifest; or paths of tars with braces for numbers. caption_field: of .json members.
    Raises InputError where there is nothing to read; what is broken inside is found, not raised.
    """
    path = Path(source)
    if (path / MANIFEST).is_file():
        return _check_tokens(path)
    if not path.is_dir() and path.suffix.lower() not in (".jsonl", ".csv"):
        return _check_shards(str(source), shard_paths(str(source)), caption_field)
    if path.is_dir() and (tars := sorted(tar for tar in path.glob("*.tar") if tar.is_file())):
        return _check_shards(str(source), tars, caption_field)
    kind: Kind = "folder" if path.is_dir() else "manifest"
    return _check_files(str(source), kind, folder_entries(path) if kind == "folder" else manifest_entries(path))


class _Tally:
    """Takes pictures one after another, in arrays: there may be many millions."""

    def __init__(self, source: str, kind: Kind) -> None:
        self.report = Report(source, kind)
        self.keys, self.digests, self.owners = array("Q"), array("Q"), array("Q")
        self.widths, self.heights = array("I"), array("I")

    def add(self, key: str, found: Looked | Skipped) -> None:
        """A picture, usable or not; where its name or bytes come again only the whole can tell."""
        report = self.report
        self.keys.append(split_number(key))
        if isinstance(found, Skipped):
            self.leave_out(found)
            return
        report.images += 1
        report.captions += found.captioned
        report.bytes += found.bytes
        if found.digest is not None:
            self.widths.append(found.width)
            self.heights.append(found.height)
            self.digests.append(found.digest)
            self.owners.append(len(self.keys) - 1)

    def leave_out(self, member: Skipped) -> None:
        """What cannot be used."""
        self.report.broken_count += 1
        self.report.broken += [member][: LISTED - len(self.report.broken)]

    def refuse(self, shard: Skipped) -> None:
        """A shard that cannot be read at all."""
        self.report.broken_shards_count += 1
        self.report.broken_shards += [shard][: LISTED - len(self.report.broken_shards)]

    def finish(self, key_of: Callable[[int], str]) -> Report:
        """The report; key_of: the name of the picture that was added as number i."""
        report = self.report
        again = _again(self.keys)
        report.same_key_count, report.same_key = len(again), [key_of(int(i)) for i in again[:LISTED]]
        again = np.asarray(self.owners, dtype=np.int64)[_again(self.digests)]
        report.same_file_count, report.same_file = len(again), [key_of(int(i)) for i in again[:LISTED]]
        if self.widths:
            width, height = np.asarray(self.widths), np.asarray(self.heights)
            report.width, report.height = _spread(width), _spread(height)
            report.side = _spread(np.minimum(width, height))
        return report


def _again(values: array) -> np.ndarray:
    """Places of values that an earlier place has too, in order."""
    first = np.unique(np.asarray(values), return_index=True)[1]
    is_again = np.ones(len(values), bool)
    is_again[first] = False
    return np.flatnonzero(is_again)


def _spread(values: np.ndarray) -> tuple[int, ...]:
    return int(values.min()), int(np.median(values)), int(values.max())


# Files


def _check_files(source: str, kind: Kind, entries: Sequence[Entry]) -> Report:
    tally = _Tally(source, kind)
    with decoding() as pool, progress_bar() as bar:
        for start in bar.track(range(0, len(entries), BLOCK), description="checking images"):
            part = entries[start : start + BLOCK]
            for entry, found in zip(part, pool.map(_look_at_file, part), strict=True):
                tally.add(entry.key, found)
    return tally.finish(lambda i: entries[i].key)


def _look_at_file(entry: Entry) -> Looked | Skipped:
    try:
        image = load_image(entry.path)  # before its bytes: of what is a pipe or too large it says so
        content = entry.path.read_bytes()
        return Looked(bool(entry.caption()), *image.size, len(content), _digest(content))
    except (InputError, OSError) as error:
        return Skipped(entry.path, str(error))


def _digest(content: bytes) -> int:
    return int.from_bytes(sha256(content).digest()[:8], "big")


# Tars


def _check_shards(source: str, paths: Sequence[ShardPath], caption_field: str) -> Report:
    tally = _Tally(source, "shards")
    begins: list[int] = []
    with decoding() as pool, progress_bar() as bar:
        for path in bar.track(paths, description="checking shards"):
            begins.append(len(tally.keys))
            tally.report.shards += 1
            try:
                _check_shard(tally, shard_file(path), caption_field, pool)
            except InputError as error:
                tally.refuse(Skipped(path, str(error)))

    @lru_cache(maxsize=1)  # names come again in the order of the shards
    def samples_of(number: int) -> list[Located]:
        shard = shard_file(paths[number])
        with shard.whole() as place:
            return locate(shard, place)[0]

    def key_of(i: int) -> str:
        number = int(np.searchsorted(begins, i, side="right")) - 1
        return f"{paths[number]}/{samples_of(number)[i - begins[number]].key}"

    return tally.finish(key_of)


def _check_shard(tally: _Tally, shard: ShardFile, caption_field: str, pool: ThreadPoolExecutor) -> None:
    look = partial(_look_at_member, shard, caption_field)
    with shard.whole() as place:
        samples, skipped = locate(shard, place)
        for start in range(0, len(samples), AT_ONCE):
            part = samples[start : start + AT_ONCE]
            for sample, found in zip(part, pool.map(look, part), strict=True):
                tally.add(sample.key, found)
    for member in skipped:
        tally.leave_out(member)


def _look_at_member(shard: ShardFile, caption_field: str, sample: Located) -> Looked | Skipped:
    found = decode(shard, sample, caption_field)
    if isinstance(found, Skipped):
        return found
    content = shard.read(*sample.image)
    return Looked(bool(found[1]), *found[0].size, len(content), _digest(content))


# Tokens


def _check_tokens(folder: Path) -> Report:
    manifest, tally, keys = read_manifest(folder), _Tally(str(folder), "tokens"), []
    for name in manifest.pending:
        tally.refuse(Skipped(folder / name, f"token shard {str(folder / name)!r} is asked for and not there yet"))
    with progress_bar() as bar:
        for shard in bar.track(manifest.shards, description="checking token shards"):
            tally.report.shards += 1
            try:
                tokens = read_shard_of(folder, manifest, shard)
            except InputError as error:
                tally.refuse(Skipped(folder / shard.name, str(error)))
                continue
            tally.report.bytes += shard.bytes
            keys += tokens.keys
            for key, caption in zip(tokens.keys, tokens.captions, strict=True):
                tally.add(key, Looked(bool(caption)))
    return tally.finish(keys.__getitem__)


# In words


def lines(report: Report) -> Iterable[str]:
    """The report for a terminal."""
    shards = f" in {report.shards:,} shard(s)" if report.shards else ""
    yield f"{report.images:,} image(s){shards}, {report.captions:,} with a caption; {report.bytes / 1e6:,.1f} MB"
    if report.side:
        names = (("width", report.width), ("height", report.height), ("shorter side", report.side))
        yield "pixels (smallest, median, largest): " + "; ".join(f"{name} {low}, {mid}, {high}"
                                                                 for name, (low, mid, high) in names)  # fmt: skip
    for entries, count, what in (
        (report.broken_shards, report.broken_shards_count, "shard(s) cannot be read"),
        (report.broken, report.broken_count, "file(s) or member(s) cannot be used"),
    ):
        yield from _listed([entry.reason for entry in entries], count, what)
    yield from _listed(report.same_key, report.same_key_count, "name(s) come again")
    yield from _listed(report.same_file, report.same_file_count, "picture(s) are the same file as an earlier one")
    if without := report.images - report.captions:
        yield f"{without:,} without a caption"
    yield "sound" if report.sound else "not sound: see above; a training leaves out what cannot be used"


def _listed(names: Sequence[str], count: int, what: str) -> Iterator[str]:
    if count:
        yield f"{count:,} {what}:"
        yield from (f"  {name}" for name in names)
        if count > len(names):
            yield f"  and {count - len(names):,} more"
