"""What the passes of the lookup share: tiles of a table, the arithmetic of a pass, and what a pass leaves open."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

GROUP = 16  # codewords whose minimum is kept together: a reduction is cheaper than a comparison of each
CROWD = 8  # a row with more open groups or codewords than this waits for the next pass
HELD = 2**18  # numbers in one working tensor of the later passes: 2 MiB of float64


class Stage(NamedTuple):
    """The arithmetic of one rounded pass."""

    dtype: torch.dtype
    unit: float  # the relative error of one sum of D products and of what is done with it
    tiny: float  # the absolute error of one number that may be flushed to zero
    scale: float  # a power of two applied to both sides


class Open(NamedTuple):
    """Pairs (row, code) that a pass cannot decide, and the rows that have too many of them to be listed."""

    row: Int64[Tensor, " P"]
    code: Int64[Tensor, " P"]
    crowded: Bool[Tensor, " M"]


def read(table: Tensor, ids: Tensor | None, size: int) -> Iterator[tuple[int, Tensor]]:
    """Tiles of the table, or of its rows `ids`, in float32, each with the position of its first row."""
    for start in range(0, len(table) if ids is None else len(ids), size):
        part = slice(start, start + size)
        yield start, (table[part] if ids is None else table[ids[part]]).float()
