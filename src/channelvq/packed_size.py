"""How many bytes token ids take: fields of ceil(log2 N) bits side by side, the last byte filled up."""

from channelvq.checks import check_whole_number, whole_number
from channelvq.errors import InputError


def num_bytes(num_tokens: int, codebook_size: int) -> int:
    """Bytes of that many tokens."""
    return -(-check_whole_number("num_tokens", num_tokens, 0) * bits_per_token(codebook_size) // 8)


def bits_per_token(codebook_size: int) -> int:
    """ceil(log2(codebook_size)), in integers."""
    number = whole_number(codebook_size)
    if number is None or not 2 <= number <= 2**62:
        raise InputError(f"codebook_size={codebook_size!r}: expected from 2 to 2**62 codes")
    return (number - 1).bit_length()
