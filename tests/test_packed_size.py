import numpy as np
import pytest

from channelvq.errors import InputError
from channelvq.packed_size import bits_per_token, num_bytes


def test_standard_image_is_96_bytes():
    assert num_bytes(64, 4096) == 96
    assert [bits_per_token(n) for n in (2, 3, 4, 5, 128, 129, 4096, 65536, 65537)] == [1, 2, 2, 3, 7, 8, 12, 16, 17]


@pytest.mark.parametrize("size", [-5, 0, 1, 2**62 + 1])
def test_wrong_codebook_sizes_are_refused(size):
    with pytest.raises(InputError, match=rf"codebook_size={size}"):
        num_bytes(3, size)


def test_negative_counts_are_refused():
    with pytest.raises(InputError, match="num_tokens: expected a whole number of at least 0, got -1"):
        num_bytes(-1, 16)


def test_counts_and_sizes_of_numpy_are_taken_and_others_refused():
    assert num_bytes(np.int32(2), np.uint8(16)) == 1
    for size in (16.0, "16", True):
        with pytest.raises(InputError, match="codebook_size="):
            bits_per_token(size)
