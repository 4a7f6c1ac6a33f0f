"""Token shards: images as ids, with captions and names beside them, in files that nothing has to be run to read.

    manifest.json             whose tokens they are, the shards that are whole, what was left out of them and why
    train-00000.safetensors   ids (n, C); and the digest of them and of the lines beside them
    train-00000.jsonl         a line {"text": ..., "key": ...} for each image

A shard that is not as it was written is refused by its digest. Only what the manifest lists is there at all: it is
written anew after each shard, so a half-written one is nobody's.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from dataclasses import dataclass as data_class
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Int32, Shaped
from pydantic import AfterValidator, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from channelvq.config import STRICT, CodebookSize, from_dict
from channelvq.data.files.listing import Stamp
from channelvq.errors import InputError, reason
from channelvq.files import parse_json, write_text_atomically
from channelvq.pretrained import (
    read_metadata,
    read_settings,
    read_weights,
    tensors_sha256,
    write_settings,
    write_weights,
)

MANIFEST = "manifest.json"
IDS, LINES = ".safetensors", ".jsonl"
TYPES = (torch.uint16, torch.uint32, torch.int32)  # that ids are stored in
_DIGEST = "sha256"  # of ids and lines, in the file of the ids


@data_class(frozen=True, eq=False)
class TokenSet:
    """n images: ids (n, C), and for each its caption and the key of its source."""

    ids: Int32[Tensor, "n C"]
    captions: tuple[str, ...]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def subset(self, places: Sequence[int]) -> "TokenSet":
        """The images at these places."""
        captions, keys = (tuple(texts[place] for place in places) for texts in (self.captions, self.keys))
        return TokenSet(self.ids[list(places)], captions, keys)

    def first_tokens(self, num_tokens: int) -> "TokenSet":
        """The first so many tokens of each image."""
        return TokenSet(self.ids[:, :num_tokens], self.captions, self.keys)


def joined(sets: Iterable[TokenSet]) -> TokenSet:
    """At least one set, one after the other."""
    parts = list(sets)
    captions, keys = (tuple(text for texts in kind for text in texts) for kind in
                      ([part.captions for part in parts], [part.keys for part in parts]))  # fmt: skip
    return TokenSet(torch.cat([part.ids for part in parts]), captions, keys)


# One shard


def id_type(codebook_size: int) -> torch.dtype:
    """The smallest type of numbers that ids of so many codes are stored in: uint16 or uint32."""
    return torch.uint16 if codebook_size <= 2**16 else torch.uint32


def write_token_shard(path: Path, ids: Shaped[Tensor, "n C"], captions: Sequence[str], keys: Sequence[str]) -> None:
    """Write ids, of the type that they have, and the lines beside them; `path` is that of the ids, a .safetensors."""
    lines = "".join(json.dumps({"text": text, "key": key}) + "\n" for text, key in zip(captions, keys, strict=True))
    # The ids last: where they are, the shard is whole. Two processes write the same.
    write_text_atomically(path.with_suffix(LINES), lines)
    write_weights(path, {"ids": ids}, {_DIGEST: tensors_sha256({"ids": ids}, lines)})


def read_token_shard(path: Path) -> TokenSet:
    """What `write_token_shard` wrote; InputError where a part of it is missing or not as it was written."""
    try:
        stored, text = read_weights(path), path.with_suffix(LINES).read_bytes().decode()
        if read_metadata(path).get(_DIGEST) != tensors_sha256(stored, text):
            raise ValueError("its ids and the lines beside it are not those that were written together")
        ids = stored["ids"]
        if ids.ndim != 2 or ids.dtype not in TYPES:
            raise ValueError(f"its ids are {ids.dtype} of shape {tuple(ids.shape)}")
        lines = [parse_json(line) for line in text.splitlines()]
        captions, keys = (tuple(_text(line, key) for line in lines) for key in ("text", "key"))
        if len(lines) != len(ids):
            raise ValueError(f"it has {len(ids)} rows of ids and {len(lines)} lines beside them")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"token shard {path} cannot be read: {reason(error)}; write it again") from None
    return TokenSet(ids.to(torch.int32), captions, keys)


def _text(line: Any, key: str) -> str:
    if not isinstance(line, dict) or not isinstance(line.get(key), str):
        raise ValueError(f"a line beside it has no text {key!r}")
    return line[key]


# The manifest


def _shard_name(name: str) -> str:
    if name != Path(name).name or name.startswith(".") or "\0" in name:
        raise ValueError("expected the name of a file in the folder")
    os.fsencode(name)  # a ValueError for half of a surrogate pair, which no file's name has
    return name


ShardName = Annotated[str, AfterValidator(_shard_name)]


@dataclass(frozen=True, config=STRICT)
class TokenShard:
    """One token shard, whole. images, captions: how many it holds, and how many of them have a caption.

    bytes: of its two files. source: size in bytes and time of change (ns) of the tar that it was made from. skipped:
    members of that which could not be used, each with its reason.
    """

    name: ShardName
    images: NonNegativeInt
    captions: NonNegativeInt
    bytes: NonNegativeInt
    source: tuple[int, int]
    skipped: tuple[tuple[str, str], ...] = ()

    def is_there(self, folder: Path) -> bool:
        """Whether its files are in a folder, of the size that they had."""
        return size_of(folder, self.name) == self.bytes

    def is_of(self, state: Stamp) -> bool:
        """Whether it was made from a tar in this state."""
        return Stamp(*self.source) == state


def size_of(folder: Path, name: str) -> int | None:
    """Bytes of the two files of a token shard; None where one is missing."""
    try:
        return sum((folder / f"{name}{suffix}").stat().st_size for suffix in (IDS, LINES))
    except OSError:
        return None


@dataclass(frozen=True, config=STRICT)
class TokenManifest:
    """What a folder of token shards holds. tokenizer: by what name it was loaded; tokenizer_digest: of its content.

    num_tokens: C. caption_field: of .json members. pending: shards that were asked for and are not there yet.
    """

    tokenizer: str
    tokenizer_digest: str
    num_tokens: PositiveInt
    codebook_size: CodebookSize
    caption_field: str
    format: Literal[1] = 1
    pending: tuple[ShardName, ...] = ()
    shards: tuple[TokenShard, ...] = ()

    def counts(self) -> dict[str, int]:
        """Of all shards: images, captions, and members that were skipped."""
        return {
            "images": sum(shard.images for shard in self.shards),
            "captions": sum(shard.captions for shard in self.shards),
            "skipped": sum(len(shard.skipped) for shard in self.shards),
        }


def write_manifest(folder: Path, manifest: TokenManifest) -> None:
    """Write it, whole or not at all."""
    write_settings(folder / MANIFEST, asdict(manifest) | manifest.counts())


def read_manifest(folder: Path) -> TokenManifest:
    """What `write_manifest` wrote; InputError where it is missing, or not that."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} holds no {MANIFEST}: expected a folder that `cvq data tokenize` wrote")
    content = read_settings(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not what `cvq data tokenize` wrote; choose another folder")
    counted = {name: content.pop(name, None) for name in ("images", "captions", "skipped")}
    try:
        manifest = from_dict(TokenManifest, content)
    except InputError as error:
        first = str(error).splitlines()[1].strip()
        raise InputError(f"{path} is not what `cvq data tokenize` wrote ({first}); choose another folder") from None
    names = [*manifest.pending, *(shard.name for shard in manifest.shards)]
    if counted != manifest.counts() or len(set(names)) < len(names):
        raise InputError(f"{path}: its counts are not those of its shards; write it again")
    return manifest


def read_token_folder(folder: Path) -> tuple[TokenManifest, TokenSet]:
    """All tokens of a folder, in memory as int32; InputError where shards are missing, damaged or do not fit."""
    manifest = read_manifest(folder)
    if manifest.pending or not manifest.shards:
        total = len(manifest.pending) + len(manifest.shards)
        raise InputError(
            f"{folder} holds {len(manifest.shards)} of {total} token shards; "
            "the command `cvq data tokenize` that began it goes on, give it again"
        )
    return manifest, joined(map(partial(read_shard_of, folder, manifest), manifest.shards))


def read_shard_of(folder: Path, manifest: TokenManifest, shard: TokenShard) -> TokenSet:
    """One of the shards that a folder's manifest lists; InputError where it is missing, damaged or does not fit."""
    path = folder / f"{shard.name}{IDS}"
    if not shard.is_there(folder):
        raise InputError(f"token shard {path} is missing or not as it was written; `cvq data tokenize` makes it again")
    tokens = read_token_shard(path)
    wanted = (shard.images, manifest.num_tokens)
    if tuple(tokens.ids.shape) != wanted:
        raise InputError(f"token shard {path} holds ids of shape {tuple(tokens.ids.shape)}, its manifest says {wanted}")
    if len(tokens) and not (tokens.ids.min() >= 0 and tokens.ids.max() < manifest.codebook_size):
        raise InputError(f"token shard {path} holds ids outside of 0..{manifest.codebook_size - 1}")
    return tokens
