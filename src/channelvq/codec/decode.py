"""Bytes -> pictures.

bytes --header, range coder, code model--> as many ids as the bytes decide --tokenizer--> images
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32
from PIL import Image

from channelvq.car.data import tokenizer_digest
from channelvq.car.model import CAR
from channelvq.checks import check_whole_number
from channelvq.codec.car_scores import CARScores
from channelvq.codec.code_model import CHECKS, CodeModel, Walk, captions_of, check_written, checksum, code_model
from channelvq.codec.container import TOKENIZER_DIGEST, DamagedWarning, Header, check_length, read_header
from channelvq.codec.exact import in_float64
from channelvq.codec.levels import counts_of
from channelvq.codec.stream import DamagedStreamError, Reader
from channelvq.codec.tables import CodeTables
from channelvq.errors import InputError
from channelvq.images import to_pil
from channelvq.nn.modes import CHUNK_ROWS, evaluating
from channelvq.tokenizer import CVQTokenizer


@dataclass(frozen=True)
class Decoded:
    """What a file, or the beginning of one, holds.

    ids: the tokens that its bytes decide, none or more. damaged: whether a damaged chunk ended them.
    """

    header: Header
    ids: tuple[int, ...]
    damaged: bool


def decompress(
    files: Sequence[bytes],
    tokenizer: CVQTokenizer,
    *,
    num_tokens: int | None = None,
    car: CAR | CARScores | None = None,
    captions: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> list[Image.Image]:
    """The picture of each file, or of the beginning of one; see `decompress_ids`. num_tokens: of the first ones only.

    Warns (DamagedWarning) of a file that is damaged from some place on: its picture is made of what is before that.
    """
    if num_tokens is not None:
        check_whole_number("num_tokens", num_tokens, 1, tokenizer.num_tokens)
    decoded = decompress_ids(files, tokenizer, car=car, captions=captions, names=names, num_tokens=num_tokens)
    for i, one in enumerate(decoded):
        if one.damaged:
            warnings.warn(
                f"{_name(names, i)}: damaged, or written on a machine that computes otherwise; the picture is made of "
                f"the {len(one.ids)} of {one.header.num_tokens} tokens before that",
                DamagedWarning,
                stacklevel=2,
            )
    exact, pictures = in_float64(tokenizer), dict[int, Image.Image]()
    for size in dict.fromkeys(_size(one) for one in decoded):
        alike = [i for i, one in enumerate(decoded) if _size(one) == size]
        pictures |= zip(alike, _pictures(exact, [decoded[i].ids for i in alike], size), strict=True)
    return [pictures[i] for i in range(len(decoded))]


def _size(one: Decoded) -> tuple[int, int]:
    return one.header.height, one.header.width


def _pictures(tokenizer: CVQTokenizer, rows: Sequence[Sequence[int]], size: tuple[int, int]) -> list[Image.Image]:
    given = [ids for ids in rows if ids]
    drawn = iter(tokenizer.detokenize_prefixes(given, size) if given else ())
    nothing = [_nothing(tokenizer, size)] if len(given) < len(rows) else []
    return [next(drawn) if ids else nothing[0] for ids in rows]


@torch.no_grad()
def _nothing(tokenizer: CVQTokenizer, size: tuple[int, int]) -> Image.Image:
    config = tokenizer.config
    side = config.latent_size
    nothing = torch.zeros(1, config.latent_channels, side, side, dtype=tokenizer.dtype, device=tokenizer.device)
    with evaluating(tokenizer):  # what training with dropped channels makes of none: about the mean of all pictures
        return to_pil(tokenizer.decode(nothing, size).clamp(-1.0, 1.0))[0]


def decompress_ids(
    files: Sequence[bytes],
    tokenizer: CVQTokenizer,
    *,
    car: CAR | CARScores | None = None,
    captions: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    num_tokens: int | None = None,
) -> list[Decoded]:
    """The tokens that each file, or the beginning of one, decides; num_tokens: the first ones only.

    car: the generator that files of kind "car" were written with. captions: for those that need theirs. names: of the
    files, for errors. Raises InputError for what is no such file, has bytes after its end, or was written with another
    tokenizer, other tables or another generator.
    """
    if isinstance(files, bytes | bytearray | str):
        raise InputError("decompress: expected a list of the bytes of files")
    owner = tokenizer_digest(tokenizer)
    tables = None if car is not None else CodeTables.of(tokenizer)
    scores = None if car is None else code_model(tokenizer, car)
    opened: list[tuple[Header, bytes]] = []
    for i, data in enumerate(files):
        header, start = read_header(bytes(data), name := _name(names, i))
        check_length(data, header, start, name)
        _check_owner(header, tokenizer, owner, name)
        if header.kind == "static" and tables is None:
            tables = CodeTables.of(tokenizer)
        _check_model(header, scores if header.kind == "car" else tables, name)
        opened.append((header, bytes(data[start:])))
    texts = captions_of(captions, len(files), True)
    out: dict[int, Decoded] = {}
    for kind, model in (("static", tables), ("car", scores)):
        places = [i for i, (header, _) in enumerate(opened) if header.kind == kind]
        for first in range(0, len(places), CHUNK_ROWS):
            group = places[first : first + CHUNK_ROWS]
            assert model is not None  # _check_model
            told = [_told(opened[i][0], texts[i], _name(names, i)) for i in group]
            out |= zip(group, _read(model, [opened[i] for i in group], told, num_tokens), strict=True)
    return [out[i] for i in range(len(files))]


def _read(
    model: CodeModel, files: list[tuple[Header, bytes]], texts: list[str], num_tokens: int | None
) -> list[Decoded]:
    walk: Walk = model.start(texts)
    rows = [_Row(header, stream, num_tokens) for header, stream in files]
    shifts = [header.shift for header, _ in files]
    k = 0
    while any(row.going for row in rows):
        ids = torch.tensor([(row.ids + [0] * k)[:k] for row in rows], dtype=torch.int64).view(len(rows), k)
        for row, levels in zip(rows, walk.levels(ids, shifts), strict=True):
            if row.going:
                row.step(levels)
        k += 1
    return [row.decoded() for row in rows]


class _Row:
    """One file on its way: its tokens so far, and how many of them a checksum has confirmed."""

    def __init__(self, header: Header, stream: bytes, num_tokens: int | None) -> None:
        self.header, self.limit = header, header.num_tokens if num_tokens is None else num_tokens
        complete = len(stream) == header.ends[-1]
        self.reader = Reader(stream, complete, header.num_tokens + header.num_chunks)
        self.ids: list[int] = []
        self.confirmed, self.going, self.damaged = 0, True, False

    def step(self, levels: Int32[np.ndarray, " N"]) -> None:
        """Read the next token, and its chunk's checksum where it is the last one."""
        try:
            token = self.reader.read(counts_of(levels))
            if token is None:
                self.going = False
                return
            self.ids.append(token)
            self._confirm()
        except DamagedStreamError:
            self.going, self.damaged = False, True

    def _confirm(self) -> None:
        k, header = len(self.ids), self.header
        if k % header.chunk_tokens == 0 or k == header.num_tokens:
            check = self.reader.read(CHECKS)
            if check is None:
                self.going = False
                return
            if check != checksum(self.ids):
                raise DamagedStreamError
            self.confirmed = k
            # Past the tokens that were asked for, so that a damaged chunk is not shown.
            self.going = k < min(self.limit, header.num_tokens)

    def decoded(self) -> Decoded:
        ids = self.ids[: self.confirmed] if self.damaged else self.ids
        return Decoded(self.header, tuple(ids[: self.limit]), self.damaged)


def _told(header: Header, given: str, name: str) -> str:
    if header.caption == "needed" and not given:
        raise InputError(f"{name}: it was written for a caption that it does not hold; give it (--caption)")
    return given if header.caption == "needed" else header.text


def _check_owner(header: Header, tokenizer: CVQTokenizer, digest: str, name: str) -> None:
    if header.tokenizer != bytes.fromhex(digest)[:TOKENIZER_DIGEST]:
        raise InputError(
            f"{name}: it was written with another tokenizer ({header.tokenizer.hex()}..., this one is "
            f"{digest[: 2 * TOKENIZER_DIGEST]}...); give that one (--tokenizer)"
        )
    size = (header.height, header.width)
    height, width = tokenizer.config.working_size(size)  # of bounded pixels: no header can ask for much memory
    if size != (height, width) or header.num_tokens > tokenizer.num_tokens:
        raise InputError(
            f"{name}: {header.width} x {header.height} px of {header.num_tokens} tokens; its tokenizer draws "
            f"{width} x {height} px of {tokenizer.num_tokens}, the header is not one that it wrote"
        )


def _check_model(header: Header, model: CodeModel | None, name: str) -> None:
    if model is None:
        raise InputError(f"{name}: it was written with a generator; give it (car=..., on the command line --car)")
    if header.model != model.digest:
        what = "other code tables" if header.kind == "static" else "another generator"
        raise InputError(
            f"{name}: it was written with {what} ({header.model.hex()}, here {model.digest.hex()}); give the tokenizer "
            "and the generator that wrote it"
        )
    check_written(model, header.num_tokens)


def _name(names: Sequence[str] | None, number: int) -> str:
    return f"file {number}" if names is None else names[number]
