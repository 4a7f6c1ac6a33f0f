"""From how likely each code is to counts, by integers alone: the same on every machine. docs/format.md, section 3.

A level is a whole number of eighths of an octave: a code of level m is twice as likely as one of level m - 8. Counts
are what the range coder wants: at least 1 each, 2**24 in all.
"""

import math

import numpy as np
from jaxtyping import Float64, Int32, Int64, Integer

from channelvq.errors import InputError

PRECISION = 24
TOTAL = 1 << PRECISION
PER_OCTAVE = 8
MOST_CODES = 1 << 20
FINE = 256  # parts of a level, of which a file's `shift` chooses one as the boundary between two levels
# Scores of two machines may differ by this many nats; by how much they do in float64: results/codec-machines-*.json.
MARGIN = 1e-9

# floor(2 ** (32 - r / 8)) for r in 0..7: three integer square roots are an eighth root.
_MANTISSAS = np.array(
    [math.isqrt(math.isqrt(math.isqrt(1 << (32 * PER_OCTAVE - r)))) for r in range(PER_OCTAVE)], dtype=np.int64
)


def counts_of(levels: Integer[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """Counts of the codes, at least 1 each, `TOTAL` in all; only differences between levels matter."""
    if not 2 <= len(levels) <= MOST_CODES:
        raise InputError(f"a codebook of {len(levels)} codes: .cvq files are for 2 to {MOST_CODES}")
    depth = levels.max() - levels.astype(np.int64)
    weights = _MANTISSAS[depth % PER_OCTAVE] >> np.minimum(depth // PER_OCTAVE, 62)
    counts = 1 + weights * (TOTAL - len(levels)) // weights.sum()
    counts[depth.argmin()] += TOTAL - counts.sum()  # what rounding down left goes to the first of the likeliest
    return counts


def fine_scores(logits: Float64[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape"]:
    """Logits in nats on a grid `FINE` times as fine as the levels, rounded down."""
    return np.floor(_on_grid(logits)).astype(np.int32)


def levels_of(fine: Int32[np.ndarray, "*shape"], shift: int) -> Int32[np.ndarray, "*shape"]:
    """Levels, where the boundaries between two of them lie at multiples of FINE less `shift`."""
    return (fine + shift) // FINE


def safe_shifts(logits: Float64[np.ndarray, "*shape"]) -> np.ndarray:
    """(FINE,) of bool: shifts under which no score lies within MARGIN of a boundary between two levels.

    So a machine whose scores differ by less finds the same levels.
    """
    grid = _on_grid(logits).ravel()
    nearest = np.rint(grid)
    unsafe = np.abs(grid - nearest) <= MARGIN / math.log(2) * PER_OCTAVE * FINE
    safe = np.ones(FINE, dtype=bool)
    safe[(-nearest[unsafe].astype(np.int64)) % FINE] = False
    return safe


def _on_grid(logits: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    # Far apart from anything that matters: 2**20 levels are 131,072 octaves.
    return np.clip(logits / math.log(2) * (PER_OCTAVE * FINE), -(2.0**28), 2.0**28)
