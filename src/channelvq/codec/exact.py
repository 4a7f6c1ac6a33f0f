"""Pictures in float64, so that a file gives the same ones everywhere.

In float32 the last bits of a network depend on threads, instructions and library, and one value in some 100,000 lies so
near to the middle between two levels of 255 that it is rounded another way. In float64 that is one in 10**13.
"""

import copy

from channelvq.tokenizer import CVQTokenizer


def in_float64(tokenizer: CVQTokenizer) -> CVQTokenizer:
    """A copy that computes in float64, on the same device."""
    return copy.deepcopy(tokenizer).double()
