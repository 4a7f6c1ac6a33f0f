"""What the processor at hand multiplies faster."""

import time
from functools import lru_cache

import torch
from torch import Tensor

_SIDE = 512  # of the matrices that are tried
_TRIES = 5


@lru_cache(maxsize=1)
def bfloat16_speedup() -> float:
    """Time of a float32 product over that of a bfloat16 product on the CPU, tried once a process.

    What a processor says of itself does not tell: one with the AVX-512 instructions for bfloat16, but without AMX,
    took twice as long by them as in float32 (docs/decisions/0006-lookup-in-bfloat16.md).
    """
    with torch.autocast("cpu", enabled=False):
        return _seconds(torch.float32) / _seconds(torch.bfloat16)


@torch.no_grad()
def _seconds(dtype: torch.dtype) -> float:
    """Of the fastest of a few products."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype, device="cpu")
    return min(_once(matrix) for _ in range(_TRIES))


def _once(matrix: Tensor) -> float:
    start = time.perf_counter()
    torch.mm(matrix, matrix)
    return time.perf_counter() - start
