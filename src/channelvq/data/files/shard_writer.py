"""Images of a folder or a manifest written as tar shards: the same images in the same order give the same bytes.

    train-00000.tar, train-00001.tar, ...   the files as they are, each with its caption as a .txt member
    train.json                              what is in them, what was skipped and why; written after each shard

A shard is complete or not there, and train.json says where in the listing it ends, so the same command goes on
where it was stopped.
"""

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, get_args

from webdataset.writer import TarWriter

from channelvq.data.files.checked import decoding
from channelvq.data.files.listing import Entry, folder_entries, manifest_entries
from channelvq.data.options import SplitOrAll
from channelvq.data.split import Split
from channelvq.errors import InputError
from channelvq.files import parse_json, write_atomically, write_text_atomically
from channelvq.images import IMAGE_SUFFIXES, load_image
from channelvq.terminal import progress_bar

AT_ONCE = 128  # image files in memory


@dataclass(frozen=True)
class Shard:
    """One written shard. end: how many images of the listing it and those before it have used up."""

    name: str
    images: int
    captions: int
    bytes: int
    end: int


@dataclass
class Written:
    """What there is of a set of shards. listing: digest of the images, captions and settings that it is made from."""

    listing: str
    complete: bool = False
    shards: list[Shard] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (file, reason)

    @property
    def images(self) -> int:
        """How many images are in the shards."""
        return sum(shard.images for shard in self.shards)

    @property
    def captions(self) -> int:
        """How many of them have a caption."""
        return sum(shard.captions for shard in self.shards)

    def urls(self, folder: Path) -> str:
        """What `kind: shards` calls the shards: their path with braces around the numbers."""
        first, last = (Path(shard.name).stem.rpartition("-") for shard in (self.shards[0], self.shards[-1]))
        numbers = first[2] if first == last else f"{{{first[2]}..{last[2]}}}"
        return str(folder / f"{first[0]}-{numbers}.tar")


def write_shards(
    source: str | Path,
    folder: str | Path,
    *,
    prefix: str = "images",
    images_per_shard: int = 5000,
    split: SplitOrAll = "all",
    validation: float = 0.05,
    test: float = 0.10,
) -> Written:
    """Write the images of a folder or of a .jsonl or .csv manifest as `folder`/`prefix`-00000.tar and so on.

    split: which images, by the manifest's field or by their names' hash with these shares, as the sources have it.
    Files that cannot be decoded, and captions that cannot be read, are skipped and listed in `folder`/`prefix`.json.
    Goes on where an earlier call stopped; raises InputError where other shards of that name are in the way, and if
    there is no image to write.
    """
    if images_per_shard < 1:
        raise InputError(f"images per shard: expected at least 1, got {images_per_shard}")
    if not re.fullmatch(r"[\w-]+", prefix):
        raise InputError(f"shard prefix {prefix!r}: expected letters, digits, - and _ only")
    folder, source = Path(folder), Path(source)
    entries = _chosen(source, split, validation, test)
    record = folder / f"{prefix}.json"
    written = _begun(record, prefix, _digest(entries, images_per_shard))
    _note(record, written)
    start = written.shards[-1].end if written.shards else 0
    with decoding() as pool, progress_bar() as bar:
        row = bar.add_task(f"writing {prefix}-*.tar", total=len(entries), completed=start)
        files = _usable(entries, start, pool, written.skipped)
        while not written.complete:
            path = folder / f"{prefix}-{len(written.shards):05d}.tar"
            shard = _write_shard(path, files, images_per_shard, len(entries))
            if shard is not None:
                written.shards.append(shard)
            if not written.shards:
                raise InputError(f"{source}: none of {len(entries)} images can be read: {written.skipped[0][1]}")
            written.complete = shard is None or shard.end == len(entries)
            _note(record, written)
            bar.update(row, completed=written.shards[-1].end)
    return written


def _chosen(source: Path, split: SplitOrAll, validation: float, test: float) -> list[tuple[str, Entry]]:
    """The images of a split, each with its name in the shards."""
    if split not in (*get_args(Split), "all"):
        raise InputError(f"split={split!r}: expected {', '.join(get_args(Split))} or all")
    entries = folder_entries(source) if source.is_dir() else manifest_entries(source)
    names = member_names([entry.key for entry in entries])
    chosen = [
        (name, entry)
        for name, entry in zip(names, entries, strict=True)
        if split in ("all", entry.split_by(validation, test))
    ]
    if not chosen:
        raise InputError(f"{source}: no image in split {split!r}; other shares (validation, test) may have some")
    return chosen


def member_names(keys: Sequence[str]) -> list[str]:
    """Names for the members of an archive, one for each key, from which `urllib.parse.unquote` gives the key again.

    webdataset takes the first dot of a file's name for the start of its suffix, and an archive has no absolute paths
    and no "..": such dots and slashes are quoted as in URLs. A second key with the same stem (x.png, x.jpg) is
    numbered, for two images of one name would be one sample.
    """
    names, seen = [], set()
    for key in keys:
        path, dot, suffix = key.replace("%", "%25").rpartition(".")
        folder, slash, name = path.rpartition("/")
        folder = "/".join(part.replace(".", "%2E") if part in (".", "..") else part for part in folder.split("/"))
        stem = folder + slash + name.replace(".", "%2E")
        if stem.startswith(("/", "__")):  # absolute, or what webdataset passes over
            stem = f"%{ord(stem[0]):02X}{stem[1:]}"
        number, unique = 1, stem
        while unique in seen:
            number += 1
            unique = f"{stem}~{number}"
        seen.add(unique)
        names.append(f"{unique}{dot}{suffix}")
    return names


def _digest(entries: Sequence[tuple[str, Entry]], images_per_shard: int) -> str:
    """Of everything that decides the bytes of the shards, but of images only their sizes and times of change."""
    content = sha256(str(images_per_shard).encode())
    for name, entry in entries:
        content.update(json.dumps([name, entry.text, entry.stamps()]).encode())
    return content.hexdigest()


def _begun(record: Path, prefix: str, listing: str) -> Written:
    """What an earlier call has written; InputError where it is of other images or settings, or of unknown origin."""
    folder = record.parent
    numbered = f"{prefix}-[0-9][0-9][0-9][0-9][0-9].tar"
    there = sorted(path.name for path in folder.glob(numbered))
    mend = f"choose another folder or --prefix, or remove {prefix}-*.tar and {record.name}"
    if not record.exists():
        if there:
            raise InputError(f"{folder} already holds {len(there)} shards {prefix}-*.tar of unknown origin; {mend}")
        return Written(listing)
    try:
        stored: dict[str, Any] = parse_json(record.read_text(encoding="utf-8"))
        shards = [Shard(**shard) for shard in stored.pop("shards")]
        skipped = [(str(name), str(reason)) for name, reason in stored.pop("skipped")]
        written = Written(**stored, shards=shards, skipped=skipped)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{record} is not what cvq data shard wrote ({error}); {mend}") from None
    if written.listing != listing:
        raise InputError(f"{folder} holds shards {prefix}-*.tar of other images or settings; {mend}")
    for shard in written.shards:
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise InputError(f"{path} is missing or not as it was written; {mend}")
    return written


def _note(record: Path, written: Written) -> None:
    write_text_atomically(record, json.dumps(asdict(written), indent=1))


def _usable(
    entries: Sequence[tuple[str, Entry]], start: int, pool: ThreadPoolExecutor, skipped: list[tuple[str, str]]
) -> Iterator[tuple[int, str, bytes, bytes]]:
    """Of a listing from a position on, a few read at a time: (position after it, name, image, caption).

    skipped: takes the files that cannot be used, as (file, reason).
    """
    for begin in range(start, len(entries), AT_ONCE):
        part = entries[begin : begin + AT_ONCE]
        contents = pool.map(_content, [entry for _, entry in part])
        for end, ((name, entry), content) in enumerate(zip(part, contents, strict=True), begin + 1):
            if isinstance(content, str):
                skipped.append((str(entry.path), content))
            else:
                yield end, name, *content


def _content(entry: Entry) -> tuple[bytes, bytes] | str:
    """The bytes of an image and of its caption, or why they cannot be used."""
    path = str(entry.path)
    if Path(entry.key).suffix.lower() not in IMAGE_SUFFIXES:
        return f"{path!r}: its name has no suffix of an image (.jpg, .png, .webp, ...)"
    try:
        load_image(entry.path)
        return entry.path.read_bytes(), entry.caption().encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON may hold and UTF-8 may not
        return f"{path!r}: its caption is no UTF-8 text ({error})"
    except (InputError, OSError) as error:
        return str(error)


def _write_shard(
    path: Path, files: Iterator[tuple[int, str, bytes, bytes]], images_per_shard: int, listed: int
) -> Shard | None:
    """Fill one shard; None, and no file, if there is nothing more. One that is not full has used up the listing."""
    first = next(files, None)
    if first is None:
        return None
    images = captions = end = 0

    def write(stream: BinaryIO) -> None:
        nonlocal images, captions, end
        # Everything that could differ between two runs is fixed; bytes as they are, so no encoder.
        with TarWriter(stream, user="", group="", mtime=0, encoder=False, format="PAX_FORMAT") as tar:
            for position, name, image, caption in chain([first], islice(files, images_per_shard - 1)):
                key, _, suffix = name.rpartition(".")
                tar.write({"__key__": key, suffix: image} | ({"txt": caption} if caption else {}))
                images, captions, end = images + 1, captions + bool(caption), position

    write_atomically(path, write)
    end = end if images == images_per_shard else listed
    return Shard(path.name, images, captions, path.stat().st_size, end)
