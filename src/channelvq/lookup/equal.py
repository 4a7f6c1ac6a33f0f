"""Rows of a table that hold the same numbers."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from channelvq.lookup.tiles import HELD, read

MERGED = 2**20  # codewords above which equal ones are not looked for: the keys alone would take the memory
_HASH = 0x9E3779B97F4A7C15


def first_equal(table: Float[Tensor, "N D"], ids: Tensor | None = None) -> Int64[Tensor, " N"]:
    """For every row the index of the first row that holds the same float32 numbers (its own if there is none).

    ids: of these rows of the table alone; the answers are then places in ids.

    Rows are sorted by a 64-bit key and compared in full; rows whose keys collide by chance stay apart, which the lookup
    can afford. -0.0 and 0.0 are the same number.
    """
    size = max(1, HELD // 4 // table.shape[1])
    powers = [pow(_HASH, i + 1, 2**64) for i in range(table.shape[1])]
    factors = torch.tensor([p - 2**64 if p >= 2**63 else p for p in powers], device=table.device)
    # Adding zero turns -0.0 into 0.0; the sum wraps around, as a hash may.
    keys = torch.zeros(len(table) if ids is None else len(ids), dtype=torch.int64, device=table.device)
    for start, part in read(table, ids, size):
        keys[start : start + size] = ((part + 0.0).view(torch.int32) * factors).sum(1)
    own = torch.arange(len(keys), device=table.device)
    values, inverse = keys.unique(return_inverse=True)
    first = own.new_full((len(values),), len(keys)).scatter_reduce_(0, inverse, own, "amin")[inverse]
    repeat = (first < own).nonzero()[:, 0]
    for part in repeat.split(size):
        here, there = (part, first[part]) if ids is None else (ids[part], ids[first[part]])
        same = (table[here].float() == table[there].float()).all(1)
        first[part] = torch.where(same, first[part], part)
    return first


def merge(codebook: Tensor, codes: Tensor | None) -> Tensor | None:
    """The codes without those that repeat a lower one: a repeat never wins."""
    count = len(codebook) if codes is None else len(codes)
    if count > MERGED:
        return codes
    kept = first_equal(codebook, codes).unique()
    return kept if codes is None else codes[kept]
