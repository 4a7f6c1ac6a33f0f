"""What the machine at hand is good for: the products that its processor is faster at, and a compiler."""

import os
import shutil
import sys
import time
from functools import lru_cache

import torch
from torch import Tensor

from channelvq.errors import InputError

_SIDE = 512  # of the matrices that are tried
_TRIES = 5
_USUAL = {"darwin": "clang++", "win32": "cl"}


@lru_cache(maxsize=1)
def bfloat16_speedup() -> float:
    """Time of a float32 product over that of a bfloat16 product on the CPU, tried once a process.

    What a processor says of itself does not tell: one with the AVX-512 instructions for bfloat16, but without AMX,
    took twice as long by them as in float32 (docs/decisions/0006-lookup-in-bfloat16.md).
    """
    with torch.autocast("cpu", enabled=False):
        return _seconds(torch.float32) / _seconds(torch.bfloat16)


def has_bfloat16_tiles() -> bool:
    """Whether the CPU multiplies bfloat16 in tiles (AMX): as it is no trial, a run that goes on has the same answer."""
    return bool(torch.cpu._is_amx_tile_supported())


@torch.no_grad()
def _seconds(dtype: torch.dtype) -> float:
    """Of the fastest of a few products."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype, device="cpu")
    return min(_once(matrix) for _ in range(_TRIES))


def _once(matrix: Tensor) -> float:
    start = time.perf_counter()
    torch.mm(matrix, matrix)
    return time.perf_counter() - start


def compiler() -> str:
    """The C++ compiler that torch.compile calls on the CPU: $CXX, or the platform's usual one."""
    return os.environ.get("CXX", _USUAL.get(sys.platform, "g++"))


def check_compiler(setting: str, on_gpu: bool) -> None:
    """InputError where torch.compile has no C++ compiler, which a GPU needs not; setting: what asked for it."""
    if not on_gpu and shutil.which(compiler()) is None:
        raise InputError(
            f"{setting}: torch.compile needs a C++ compiler on the CPU, and there is no {compiler()}; install it, name "
            "another one in the environment variable CXX, or leave it out"
        )
