import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelvq.codec.levels import MARGIN, TOTAL, counts_of, fine_scores, levels_of, safe_shifts
from channelvq.codec.stream import _constriction, _model
from channelvq.errors import InputError


@given(st.lists(st.integers(-300, 300), min_size=2, max_size=300))
def test_counts_are_exact_shares_of_the_whole(levels: list[int]) -> None:
    counts = counts_of(np.array(levels))
    assert counts.sum() == TOTAL
    assert counts.min() >= 1
    shares = 2.0 ** ((np.array(levels) - max(levels)) / 8)
    expected = 1 + (TOTAL - len(levels)) * shares / shares.sum()
    assert np.abs(counts - expected).max() <= len(levels)


def test_the_coder_uses_the_counts_it_is_given() -> None:
    """constriction takes floats; with ours its arithmetic is exact, which its state after one symbol shows."""
    counts = counts_of(np.random.default_rng(0).integers(-120, 0, 4096))
    model, scale = _model(counts), (2**64 - 1) >> 24
    left = 0
    for symbol, count in enumerate(counts.tolist()):
        encoder = _constriction().queue.RangeEncoder()
        encoder.encode(symbol, model)
        _, (lower, width) = encoder.pos()
        if scale * count >= 2**32:  # else a word has left the state
            assert (lower, width) == (scale * left, scale * count)
        left += count


def test_under_a_safe_shift_last_bits_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 4, (64, 4096))
    safe = safe_shifts(logits)
    assert safe.any()
    # A score on a boundary of shift 7 and none else: that shift is not safe.
    logits[0, 0] = (256 * 3 - 7) / 2048 * math.log(2)
    assert not safe_shifts(logits)[7]
    shift = int(safe_shifts(logits).argmax())
    noise = rng.uniform(-0.9 * MARGIN, 0.9 * MARGIN, logits.shape)
    near = (levels_of(fine_scores(x), shift) for x in (logits, logits + noise, logits - 0.9 * MARGIN))
    first, *others = near
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("size", [1, 2**20 + 1])
def test_too_many_codes_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"codebook of {size} codes"):
        counts_of(np.zeros(size, dtype=np.int64))
