"""Token ids <-> bytes: fixed-width fields, most significant bit first, so any prefix of the bytes is a shorter image.

ids (C,) --ceil(log2 N) bits each--> one stream of bits --zeros to fill the last byte--> bytes
"""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from channelvq.checks import check_integers, check_whole, whole
from channelvq.errors import InputError


def encode_ids(ids: Int64[Tensor, " c"], codebook_size: int) -> bytes:
    """Ids in [0, codebook_size) as `num_bytes(C, codebook_size)` bytes.

    Raises InputError for a tensor that is not one row of integers and for an id out of range.
    """
    bits = bits_per_token(codebook_size)
    check_integers("ids", ids)
    if ids.ndim != 1:
        raise InputError(f"ids of shape {tuple(ids.shape)}: expected the integers (C,) of one image")
    values = ids.detach().cpu().numpy().astype(np.int64)
    _check_range(values, codebook_size)
    fields = (values[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(fields.astype(np.uint8)).tobytes()


def decode_ids(data: bytes, codebook_size: int, num_tokens: int | None = None) -> Int64[Tensor, " c"]:
    """The whole tokens that `data`, or any prefix of it, contains; at most the first `num_tokens`.

    With 128 codes or fewer a token is shorter than a byte and the zeros that fill the last byte could be read as one,
    so `num_tokens`, the length that was encoded, is needed (a prefix of the bytes still gives what it contains).
    Raises InputError when it is missing there, and for a decoded id that the codebook does not have.
    """
    bits = bits_per_token(codebook_size)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"decode_ids: expected bytes, as encode_ids gives them, got {type(data).__name__}")
    if num_tokens is None and bits < 8:
        raise InputError(
            f"bytes of {bits}-bit tokens (codebook_size={codebook_size}) do not tell where the last token ends; "
            "give num_tokens, the number of tokens encoded"
        )
    if num_tokens is not None:
        num_tokens = check_whole("num_tokens", num_tokens, 0)
    contained = 8 * len(data) // bits
    count = contained if num_tokens is None else min(contained, num_tokens)
    fields = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count * bits).reshape(count, bits)
    values = fields.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))
    _check_range(values, codebook_size)
    return torch.from_numpy(values)


def num_bytes(num_tokens: int, codebook_size: int) -> int:
    """Length of `encode_ids` of that many tokens."""
    return -(-check_whole("num_tokens", num_tokens, 0) * bits_per_token(codebook_size) // 8)


def bits_per_token(codebook_size: int) -> int:
    """ceil(log2(codebook_size)), in integers."""
    number = whole(codebook_size)
    if number is None or not 2 <= number <= 2**62:
        raise InputError(f"codebook_size={codebook_size!r}: expected from 2 to 2**62 codes")
    return (number - 1).bit_length()


def _check_range(values: np.ndarray, codebook_size: int) -> None:
    wrong = np.flatnonzero((values < 0) | (values >= codebook_size))
    if wrong.size:
        at = int(wrong[0])
        raise InputError(
            f"id {values[at]} at position {at} is outside [0, {codebook_size - 1}]; "
            f"do the ids or bytes belong to another codebook than one of {codebook_size} codes?"
        )
