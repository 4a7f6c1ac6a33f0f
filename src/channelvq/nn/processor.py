"""What the processor at hand multiplies faster."""

import time
from functools import lru_cache

import torch
from torch import Tensor

_SIDE = 512  # of the matrices that are tried
_TRIES = 5


@lru_cache(maxsize=1)
def bfloat16_speedup() -> float:
    """Time of a float32 product over that of a bfloat16 product on the CPU, tried once a process (about 50 ms).

    What the processor says of itself does not tell: with AMX it is 5 and more, with the older AVX-512 instructions
    alone it has been seen between 0.5 and 2.
    """
    return _time(torch.float32) / _time(torch.bfloat16)


@torch.no_grad()
def _time(dtype: torch.dtype) -> float:
    """Seconds of the fastest of a few products."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype, device="cpu")
    return min(_seconds(matrix) for _ in range(_TRIES))


def _seconds(matrix: Tensor) -> float:
    start = time.perf_counter()
    torch.mm(matrix, matrix)
    return time.perf_counter() - start
