"""The last pass of the lookup: distances without rounding."""

from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from channelvq.lookup.tiles import HELD, read

ROW_TILE = 512


class _Slices(NamedTuple):
    """x = 2^low * sum_s x_s 2^(s bits) with integers |x_s| < 2^bits, so that D products x_s y_t sum to at most 2^53.

    Then float64 products of matrices of slices are exact in any order (Ozaki et al., Numerical Algorithms 59, 2012).
    """

    low: int
    bits: int
    pieces: int

    def cut(self, numbers: Tensor) -> list[Tensor]:
        rest, slices = numbers.double(), []
        for place in reversed(range(self.pieces)):
            step = 2.0 ** (self.low + self.bits * place)
            slices.append((rest / step).trunc_())
            rest = rest - slices[-1] * step
        return slices[::-1]


def _slices(rows: Tensor, codebook: Tensor, codes: Tensor | None) -> _Slices:
    """The slices that hold all 24 bits of every number of both sides."""
    low, high = [], []
    for table, ids in ((rows, None), (codebook, codes)):
        for _, part in read(table, ids, max(1, HELD // 4 // rows.shape[1])):
            exponents = torch.frexp(part[part != 0].double()).exponent
            if len(exponents):
                low.append(int(exponents.min()) - 24)
                high.append(int(exponents.max()))
    if not low:
        return _Slices(0, 1, 1)
    bits = (53 - (rows.shape[1] - 1).bit_length()) // 2
    return _Slices(min(low), bits, -(-(max(high) - min(low)) // bits))


def solve_exactly(rows: Tensor, codebook: Tensor, codes: Tensor | None) -> Int64[Tensor, " M"]:
    """The first of the codes at the smallest distance, in integer arithmetic."""
    slices = _slices(rows, codebook, codes)
    size = max(1, HELD // (slices.pieces * rows.shape[1]))
    places = torch.cat([_least(part, codebook, codes, slices) for part in rows.split(min(size, ROW_TILE))])
    return places if codes is None else codes[places]


def _least(rows: Tensor, codebook: Tensor, codes: Tensor | None, slices: _Slices) -> Int64[Tensor, " M"]:
    """Position of the least score of each row, tile by tile; the least so far takes part as the first of a tile."""
    doubled = [(2 * part).T for part in slices.cut(rows)]
    room = min(HELD // (2 * slices.pieces * len(rows)), HELD // (slices.pieces * rows.shape[1]))
    best = place = None
    for start, tile in read(codebook, codes, max(1, room)):
        digits = _digits(slices.cut(tile), doubled, slices.bits)
        if best is not None:
            digits = torch.cat([best, digits], 1)
        first = _first_least(digits)
        best = digits.gather(1, first.expand(len(digits), 1, -1))
        place = first if place is None else torch.where(first == 0, place, start + first - 1)
    assert place is not None
    return place[0]


def _digits(words: list[Tensor], doubled: list[Tensor], bits: int) -> Int64[Tensor, "K N M"]:
    """|e|^2 - 2 z.e as integers in base 2^bits: every digit but the highest is in [0, 2^bits)."""
    shape = (2 * len(words) - 1, len(words[0]), doubled[0].shape[1])
    digits = torch.zeros(shape, dtype=torch.int64, device=words[0].device)
    used = [bool(part.any()) for part in words], [bool(part.any()) for part in doubled]
    for i, word in enumerate(words):
        for j in range(len(words) if used[0][i] else 0):
            if used[0][j]:
                digits[i + j] += (word * words[j]).sum(1).long()[:, None]
            if used[1][j]:
                digits[i + j] -= (word @ doubled[j]).long()
    for place in range(len(digits) - 1):
        carry = digits[place] >> bits
        digits[place] -= carry << bits
        digits[place + 1] += carry
    return digits


def _first_least(digits: Int64[Tensor, "K N M"]) -> Int64[Tensor, "1 M"]:
    """Index n of the first of the least numbers of each column, compared from the highest digit down."""
    beyond = torch.iinfo(torch.int64).max
    least = digits[-1] == digits[-1].amin(0)
    for digit in reversed(digits[:-1].unbind()):
        masked = digit.masked_fill(~least, beyond)
        least = masked == masked.amin(0)
    order = torch.arange(digits.shape[1], device=digits.device)[:, None]
    return torch.where(least, order, digits.shape[1]).amin(0, keepdim=True)
