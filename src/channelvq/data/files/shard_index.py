"""What is where in a tar shard: read once, kept in the user's cache, so that any sample can be read at once.

    ~/.cache/channelvq/shards/<hash of path and caption field>.npz: where each image and caption begins and how long it
    is, keys, and what is left out and why

A shard is read to its end and every image in it decoded, as with image files (data/files/checked.py): a broken one met
in the middle of a training would end it. An index counts while the shard's size and time of change are the same.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from webdataset.tariterators import group_by_keys

from channelvq.data.fetched.packages import cache_root
from channelvq.data.files import remote
from channelvq.data.files.checked import decoding
from channelvq.data.files.listing import Stamp, stamp
from channelvq.data.files.remote import RemotePath
from channelvq.data.split import split_number
from channelvq.errors import InputError
from channelvq.files import parse_json, write_atomically
from channelvq.images import IMAGE_SUFFIXES, Skipped, load_image

BLOCK = 512  # bytes: what a tar archive is made of
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard
META = re.compile(r"__[^/]*__($|/)")  # members that webdataset itself passes over
FORMAT = 1  # of the index files

# Kinds of caption
NONE, TEXT, JSON = range(3)

# One usable sample. image, text: first byte in the shard; key: first byte in the index's keys; *_size in bytes.
SAMPLE = np.dtype(
    [
        ("image", "i8"), ("image_size", "i8"), ("text", "i8"), ("text_size", "i4"), ("text_kind", "u1"),
        ("key", "i8"), ("key_size", "i4"), ("split_number", "u8"),
    ]
)  # fmt: skip
Place = tuple[int, int]  # first byte, number of bytes
ShardPath = Path | RemotePath


@dataclass(frozen=True, eq=False)
class ShardFile:
    """A shard as it was when it was first looked at."""

    path: ShardPath
    stamp: Stamp

    def whole(self) -> AbstractContextManager[Path]:
        """A file of this machine with all of it: its own, or a copy, which `read` reads while it is there."""
        if isinstance(self.path, RemotePath):
            return remote.local_copy(self.path, self.stamp)
        return nullcontext(self.path)

    def read(self, first: int, size: int) -> bytes:
        """Some bytes of the shard; InputError if it is gone or no longer what was indexed."""
        if isinstance(self.path, RemotePath):
            return remote.read(self.path, self.stamp, first, size)
        try:
            with self.path.open("rb") as file:
                if stamp(file.fileno()) != self.stamp:
                    raise InputError(f"shard {str(self.path)!r} has changed since the run began: start again")
                file.seek(first)
                return file.read(size)
        except OSError as error:
            raise InputError(f"shard {str(self.path)!r} cannot be read: {error.strerror}") from error


@dataclass(frozen=True, eq=False)
class ShardIndex(ShardFile):
    """The usable samples of one shard in their order, as an array of SAMPLE; skipped: what is not usable, and why."""

    samples: np.ndarray
    keys: UInt8[np.ndarray, "bytes"]
    skipped: tuple[Skipped, ...]

    def key(self, sample: np.void) -> str:
        """The name of a sample."""
        return self.keys[sample["key"] : sample["key"] + sample["key_size"]].tobytes().decode("utf-8", "surrogatepass")


def index_shard(path: ShardPath, caption_field: str) -> ShardIndex:
    """The index of a shard from the cache, or made now; caption_field: which field of a .json member is the caption.

    Raises InputError where the shard is missing, no plain tar archive, cut off, or holds a name twice.
    """
    shard = shard_file(path)
    place = path if isinstance(path, RemotePath) else path.absolute()
    digest = sha256(f"{place}\n{caption_field}".encode("utf-8", "surrogatepass")).hexdigest()[:24]
    memory = cache_root() / "shards" / f"{digest}.npz"
    if (remembered := _remembered(memory, path, shard.stamp)) is not None:
        return remembered
    index = _read_shard(shard, caption_field)
    with suppress(OSError):  # a cache that cannot be written costs time only
        write_atomically(memory, partial(_save, index))
    return index


def shard_file(path: ShardPath) -> ShardFile:
    """A shard as it is now; InputError where it is missing."""
    state = remote.state_of(path) if isinstance(path, RemotePath) else stamp(path)
    if state is None:
        raise InputError(f"shard {str(path)!r} cannot be read: is it gone, or may you not?")
    return ShardFile(path, state)


def _maker() -> str:
    return f"{FORMAT}, Pillow {version('pillow')}"


def _save(index: ShardIndex, stream: Any) -> None:
    skipped = json.dumps([[str(skipped.path), skipped.reason] for skipped in index.skipped])
    np.savez(
        stream, maker=_maker(), stamp=np.array(index.stamp), samples=index.samples, keys=index.keys, skipped=skipped
    )


def _remembered(memory: Path, path: ShardPath, state: Stamp) -> ShardIndex | None:
    """The stored index; None if it is missing, broken, of another state of the shard or of another Pillow."""
    try:
        with memory.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["maker"]) != _maker() or Stamp(*stored["stamp"].tolist()) != state:
                return None
            skipped = tuple(Skipped(type(path)(name), reason) for name, reason in parse_json(str(stored["skipped"])))
            return ShardIndex(path, state, stored["samples"], stored["keys"], skipped)
    except Exception:  # zipfile and numpy have a dozen kinds of errors for a byte that has changed
        return None


# Reading a shard


class Located(NamedTuple):
    """A sample of the archive: where its image and its caption are."""

    key: str
    image: Place
    text: Place
    kind: int


def locate(shard: ShardFile, place: Path) -> tuple[list[Located], list[Skipped]]:
    """The samples of a shard in their order, and what is none, with reasons; nothing is decoded yet.

    place: where all of it is, as `whole` gives it.
    Raises InputError where the shard is no plain tar archive, cut off, or holds a name twice.
    """
    samples: list[Located] = []
    skipped: list[Skipped] = []
    for members in _grouped(shard.path, place):
        sample = _classified(shard.path, members)
        if isinstance(sample, Skipped):
            skipped.append(sample)
        else:
            samples.append(sample)
    return samples, skipped


def decode(shard: ShardFile, sample: Located, caption_field: str) -> tuple[Image.Image, str] | Skipped:
    """The picture and the caption of a sample, or why they cannot be used; InputError where the shard cannot be read.

    A shard that is gone says nothing against its pictures.
    """
    image, text = shard.read(*sample.image), shard.read(*sample.text)
    try:
        return load_image(image), parse_caption(text, sample.kind, caption_field)
    except InputError as error:
        name = shard.path / sample.key
        return Skipped(name, f"{str(name)!r}: {error}")


def _read_shard(shard: ShardFile, caption_field: str) -> ShardIndex:
    with shard.whole() as place, decoding() as pool:
        located, skipped = locate(shard, place)
        checked = list(pool.map(partial(_checked, shard, caption_field), located))
    good = [sample for sample in checked if isinstance(sample, Located)]
    skipped += [sample for sample in checked if isinstance(sample, Skipped)]
    samples, keys, start = np.empty(len(good), SAMPLE), [], 0
    for row, (key, image, text, kind) in enumerate(good):
        keys.append(key.encode("utf-8", "surrogatepass"))
        samples[row] = (*image, *text, kind, start, len(keys[-1]), split_number(key))
        start += len(keys[-1])
    joined = np.frombuffer(b"".join(keys), np.uint8)
    return ShardIndex(shard.path, shard.stamp, samples, joined, tuple(skipped))


def _grouped(path: ShardPath, place: Path) -> Iterator[dict[str, Any]]:
    """The members of a shard by sample, as webdataset groups them: {"__key__": name, suffix: place, ...}."""
    files = ({"fname": name, "data": where, "__url__": str(path)} for name, where in _members(path, place))
    try:
        yield from group_by_keys(files, lcase=False)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"shard {str(path)!r}: {error.args[0]}; write the shard again with different names") from None


def _members(path: ShardPath, place: Path) -> Iterator[tuple[str, Place]]:
    """Name and place of the plain files of a tar archive, in their order."""
    end = 0
    try:
        with tarfile.open(place, "r:") as tar:
            for member in tar:
                size = member.size if member.isreg() else 0
                end = member.offset_data + -(-size // BLOCK) * BLOCK
                if member.isreg() and not META.match(member.name):
                    yield member.name, (member.offset_data, member.size)
        with place.open("rb") as file:
            # tarfile takes whatever is no header for the end; only a block of zeros is.
            file.seek(end)
            ended = file.read(BLOCK) == bytes(BLOCK)
    except (tarfile.TarError, OSError) as error:
        raise _unusable(path, place, str(error)) from None
    if not ended:
        raise _unusable(path, place, f"after {end} bytes there is neither a member nor the end mark")


def _unusable(path: ShardPath, place: Path, reason: str) -> InputError:
    start = b""
    with suppress(OSError), place.open("rb") as file:  # of what cannot be opened the reason says so
        start = file.read(8)
    if start.startswith(COMPRESSED):
        return InputError(f"shard {str(path)!r} is compressed: a plain .tar is needed, unpack it first")
    return InputError(f"shard {str(path)!r} is broken or cut off ({reason}): copy or download it again")


def _classified(path: ShardPath, members: dict[str, Any]) -> Located | Skipped:
    name = members["__key__"]
    files = {suffix: place for suffix, place in members.items() if not suffix.startswith("__")}
    images = [suffix for suffix in files if f".{suffix.lower()}" in IMAGE_SUFFIXES]
    if len(images) != 1:
        what = f"{len(images)} images" if images else "no image"
        return Skipped(path / name, f"{str(path / name)!r}: {what} among its members ({', '.join(files)})")
    by_lower = {suffix.lower(): place for suffix, place in files.items()}
    kind = TEXT if "txt" in by_lower else JSON if "json" in by_lower else NONE
    text = by_lower[("txt", "json")[kind - 1]] if kind else (0, 0)
    # Names are quoted where the format leaves no room for them, see data/files/shard_writer.py.
    return Located(unquote(f"{name}.{images[0]}", errors="surrogatepass"), files[images[0]], text, kind)


def _checked(shard: ShardFile, caption_field: str, sample: Located) -> Located | Skipped:
    """The sample if its image decodes and its caption can be used, with kind NONE where the caption is empty."""
    found = decode(shard, sample, caption_field)
    if isinstance(found, Skipped):
        return found
    return sample if found[1] else sample._replace(kind=NONE)


def parse_caption(content: bytes, kind: int, caption_field: str) -> str:
    """The caption in a .txt (TEXT) or .json (JSON) member, "" where there is none; InputError where it is no text."""
    if kind == NONE:
        return ""
    try:
        text = content.decode("utf-8-sig")
        caption = parse_json(text) if kind == JSON else text
    except ValueError as error:
        raise InputError(f"its caption cannot be read ({error})") from None
    if kind == JSON:
        if not isinstance(caption, dict):
            raise InputError(f"its .json is a {type(caption).__name__}, expected an object with {caption_field!r}")
        caption = caption.get(caption_field) or ""
    if not isinstance(caption, str):
        raise InputError(f"its caption {caption_field!r} is {caption!r}, expected a text")
    return caption.strip()
