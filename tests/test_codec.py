import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelvq.codec import bits_per_token, decode_ids, encode_ids, num_bytes
from channelvq.errors import InputError


@st.composite
def ids_and_size(draw, smallest=2):
    size = draw(st.one_of(st.integers(smallest, 300), st.integers(smallest, 2**62)))
    return draw(st.lists(st.integers(0, size - 1), max_size=20)), size


def test_layout_is_most_significant_bit_first():
    assert encode_ids(torch.tensor([0xABC, 0xDEF]), 4096) == b"\xab\xcd\xef"
    assert encode_ids(torch.tensor([0b10, 0b01, 0b11]), 4) == bytes([0b10_01_11_00])
    assert encode_ids(torch.tensor([], dtype=torch.int64), 4096) == b""
    assert decode_ids(b"", 4096).shape == (0,)


def test_standard_image_is_96_bytes():
    assert num_bytes(64, 4096) == 96
    assert [bits_per_token(n) for n in (2, 3, 4, 5, 128, 129, 4096, 65536, 65537)] == [1, 2, 2, 3, 7, 8, 12, 16, 17]


@settings(deadline=None)
@given(ids_and_size(), st.integers(0, 1000))
def test_round_trip_and_every_prefix(case, cut):
    ids, size = case
    data = encode_ids(torch.tensor(ids, dtype=torch.int64), size)
    bits = math.ceil(math.log2(size)) if size < 2**50 else bits_per_token(size)
    assert len(data) == num_bytes(len(ids), size) == math.ceil(len(ids) * bits / 8)
    decoded = decode_ids(data, size, len(ids))
    assert decoded.dtype == torch.int64
    assert decoded.tolist() == ids
    prefix = data[: cut % (len(data) + 1)]
    assert decode_ids(prefix, size, len(ids)).tolist() == ids[: 8 * len(prefix) // bits]


@settings(deadline=None)
@given(ids_and_size(smallest=129))
def test_a_token_of_a_byte_or_more_needs_no_count(case):
    ids, size = case
    assert decode_ids(encode_ids(torch.tensor(ids, dtype=torch.int64), size), size).tolist() == ids


def test_a_count_limits_the_tokens():
    data = encode_ids(torch.tensor([5, 6, 7]), 4096)
    assert decode_ids(data, 4096, 2).tolist() == [5, 6]
    assert decode_ids(data, 4096, 9).tolist() == [5, 6, 7]


def test_small_codebook_without_count_is_refused():
    with pytest.raises(InputError, match=r"4-bit tokens \(codebook_size=16\).*give num_tokens"):
        decode_ids(b"\x12\x30", 16)


@pytest.mark.parametrize("wrong", [-1, 1000, 5000])
def test_ids_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match=rf"id {wrong} at position 2 is outside \[0, 999\]"):
        encode_ids(torch.tensor([1, 999, wrong, -7]), 1000)


def test_bytes_of_another_codebook_are_refused():
    data = encode_ids(torch.tensor([3, 1023]), 1024)
    with pytest.raises(InputError, match=r"id 1023 at position 1 is outside \[0, 999\]"):
        decode_ids(data, 1000)


@pytest.mark.parametrize("ids", [torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3), torch.tensor(3), [1, 2]])
def test_wrong_tensors_are_refused(ids):
    with pytest.raises(InputError, match=r"expected (the integers|whole numbers|a tensor of whole numbers)"):
        encode_ids(ids, 16)


@pytest.mark.parametrize("size", [-5, 0, 1, 2**62 + 1])
def test_wrong_codebook_sizes_are_refused(size):
    for call in (
        lambda: num_bytes(3, size),
        lambda: decode_ids(b"abc", size),
        lambda: encode_ids(torch.tensor([0]), size),
    ):
        with pytest.raises(InputError, match=rf"codebook_size={size}"):
            call()


def test_negative_counts_are_refused():
    for call in (lambda: num_bytes(-1, 16), lambda: decode_ids(b"abc", 16, -1)):
        with pytest.raises(InputError, match="num_tokens: expected a whole number of at least 0, got -1"):
            call()


def test_counts_and_sizes_of_numpy_are_taken_and_text_is_no_bytes():
    data = encode_ids(torch.tensor([3, 9]), np.int64(16))
    assert decode_ids(data, np.int64(16), np.int64(2)).tolist() == [3, 9]
    assert num_bytes(np.int32(2), np.uint8(16)) == 1
    for size in (16.0, "16", True):
        with pytest.raises(InputError, match="codebook_size="):
            bits_per_token(size)
    with pytest.raises(InputError, match="expected bytes, as encode_ids gives them, got str"):
        decode_ids("abc", 16, 2)
