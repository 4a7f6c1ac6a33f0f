"""The header of a .cvq file; docs/format.md, section 1. Without torch: what a file says of itself costs nothing.

    "CVQ" version kind | tokenizer's digest | model's digest | height width tokens chunk | [shift] [caption] | index |
    check

Everything is checked before it is believed: a header of few bytes can ask for no memory.
"""

import zlib
from dataclasses import dataclass
from typing import Literal

from channelvq.errors import InputError

MAGIC, VERSION = b"CVQ", 1
TOKENIZER_DIGEST, MODEL_DIGEST, HEADER_CHECK = 4, 2, 2  # bytes
MOST_PIXELS, MOST_TOKENS, MOST_CAPTION = 65_535, 65_536, 4_096  # of a side, of a picture, bytes
BITS = 24  # no symbol of the stream takes more
MOST_BYTES = 8 * MOST_TOKENS + MOST_CAPTION + 64  # of any file
Caption = Literal["none", "stored", "needed"]
_KINDS: dict[int, tuple[Literal["static", "car"], Caption]] = {
    0x00: ("static", "none"),
    0x10: ("car", "none"),
    0x11: ("car", "stored"),
    0x12: ("car", "needed"),
}


class DamagedWarning(UserWarning):
    """A file is damaged from some place on: the picture is made of the tokens before it."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    tokenizer, model: the first bytes of the digests of the tokenizer and of the code model that wrote it. height,
    width: of the picture. num_tokens: that were written. chunk_tokens: tokens to a checksum. ends: how many bytes of
    the stream decide each chunk; the last is the length of the stream. shift: 0..255, of the grid of CAR's scores (see
    `levels`). caption: whether CAR was told `text`; "needed": a reader has to be told it as well.
    """

    kind: Literal["static", "car"]
    tokenizer: bytes
    model: bytes
    height: int
    width: int
    num_tokens: int
    chunk_tokens: int
    ends: tuple[int, ...]
    shift: int = 0
    caption: Caption = "none"
    text: str = ""

    @property
    def num_chunks(self) -> int:
        """Chunks of the stream, the last one perhaps of fewer tokens."""
        return -(-self.num_tokens // self.chunk_tokens)

    def write(self) -> bytes:
        """Its bytes."""
        kind = next(byte for byte, meaning in _KINDS.items() if meaning == (self.kind, self.caption))
        body = MAGIC + bytes([VERSION, kind]) + self.tokenizer + self.model
        body += b"".join(map(_varint, (self.height, self.width, self.num_tokens, self.chunk_tokens)))
        if self.kind == "car":
            body += bytes([self.shift])
        if self.caption == "stored":
            body += _varint(len(self.text.encode())) + self.text.encode()
        steps = zip(self.ends, (0, *self.ends), strict=False)
        body += b"".join(_varint(end - before) for end, before in steps)
        return body + _check(body)


def is_cvq(data: bytes) -> bool:
    """Whether a file begins as these do."""
    return data[: len(MAGIC)] == MAGIC


def read_header(data: bytes, name: str = "file") -> tuple[Header, int]:
    """The header and its length in bytes; name: of the file, in errors.

    Raises InputError for what is no such file, of another version, cut within the header or damaged there.
    """
    if not is_cvq(data):
        raise InputError(f"{name}: expected a .cvq file, which begins with 'CVQ'; this one is {_start(data)}")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise InputError(
            f"{name}: it is of version {data[len(MAGIC)]} of the format, this library reads version {VERSION}; "
            "update channelvq, or write the file again"
        )
    reader = _Reader(data, name)
    header = _fields(reader)
    body = reader.at
    if reader.take(HEADER_CHECK) != _check(data[:body]):
        raise InputError(f"{name}: the header is damaged (its checksum is another); copy the file again")
    if header.ends[-1] > (BITS * header.num_tokens + 8 * header.num_chunks) // 8 + 8:
        raise reader.wrong(f"{header.num_tokens} tokens in {header.ends[-1]} bytes")
    return header, reader.at


def check_length(data: bytes, header: Header, start: int, name: str) -> None:
    """InputError for bytes after the end; start: length of the header."""
    if (extra := len(data) - start - header.ends[-1]) > 0:
        raise InputError(
            f"{name}: {extra} byte(s) follow the end of the picture; a file holds one picture of "
            f"{start + header.ends[-1]} bytes, cut the rest off"
        )


class _Reader:
    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.at = data, name, len(MAGIC) + 1

    def take(self, count: int) -> bytes:
        if len(self.data) < self.at + count:
            raise InputError(f"{self.name}: cut within its header, after {len(self.data)} bytes; copy the file again")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, what: str, low: int, high: int) -> int:
        value = 0
        for shift in (0, 7, 14):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if low <= value <= high and (byte or not shift):  # one way to write a number
                    return value
                break
        raise self.wrong(f"{what}: a number out of {low}..{high}, or not in its shortest form")

    def wrong(self, what: str) -> InputError:
        return InputError(f"{self.name}: the header is damaged ({what}); copy the file again")


def _fields(reader: _Reader) -> Header:
    kind = reader.take(1)[0]
    if kind not in _KINDS:
        raise reader.wrong(f"code model of kind {kind:#04x}, known are {', '.join(f'{k:#04x}' for k in _KINDS)}")
    model, caption = _KINDS[kind]
    digests = reader.take(TOKENIZER_DIGEST), reader.take(MODEL_DIGEST)
    height, width = (reader.number(side, 1, MOST_PIXELS) for side in ("height", "width"))
    num_tokens = reader.number("tokens", 1, MOST_TOKENS)
    chunk_tokens = reader.number("tokens to a chunk", 1, MOST_TOKENS)
    shift = reader.take(1)[0] if model == "car" else 0
    text = _text(reader) if caption == "stored" else ""
    ends = list[int]()
    for _ in range(-(-num_tokens // chunk_tokens)):
        ends.append((ends[-1] if ends else 0) + reader.number("index", 0, BITS * MOST_TOKENS))
    return Header(model, *digests, height, width, num_tokens, chunk_tokens, tuple(ends), shift, caption, text)


def _text(reader: _Reader) -> str:
    raw = reader.take(reader.number("caption", 0, MOST_CAPTION))
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise reader.wrong("the caption is not UTF-8") from None


def _varint(value: int) -> bytes:
    """7 bits a byte, the lowest first; the highest bit says that more follow (LEB128)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _check(body: bytes) -> bytes:
    return (zlib.crc32(body) & 0xFFFF).to_bytes(HEADER_CHECK, "big")


def _start(data: bytes) -> str:
    return f"{len(data)} bytes that begin with {data[:8]!r}" if data else "empty"
