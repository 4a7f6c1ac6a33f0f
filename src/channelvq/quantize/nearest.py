"""Exact nearest-codeword lookup in bounded memory.

    M vectors   N codewords   D numbers in each

Three passes, each over what the one before left undecided:

    float32   |e|^2/2 - z.e, whose order over the codewords is that of the distance, in tiles with a running minimum
    float64   the same for the rows and codewords that the proven error bound of float32 leaves open
    integers  the same without rounding: numbers cut into slices so short that float64 products of them are exact

Nearly every row of ordinary data is decided by the first. Bit-equal rows and codewords are merged before the later
passes. So the index depends on the numbers alone: not on tile, batch, threads, layout, autocast or device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from channelvq.errors import InputError

ROW_TILE = 2048
CODE_TILE = 1024
GROUP = 16  # codewords whose minimum is kept together: a reduction is cheaper than a comparison of each
CROWD = 8  # a row with more open groups or codewords than this waits for the next pass
HELD = 2**19  # numbers in one working tensor of the later passes: 4 MiB of float64
MERGED = 2**20  # codewords above which equal ones are not looked for: the keys alone would take the memory

_UNIT32 = 2.0**-24
_UNIT64 = 2.0**-53
_TINY = 2.0**-126  # the smallest normal float32: a number below it may be flushed to zero
_MODERATE = 1e9  # beyond it, or below its inverse, squares and their sums could leave the range of float32
_HASH = 0x9E3779B97F4A7C15


class _Stage(NamedTuple):
    """The arithmetic of one rounded pass."""

    dtype: torch.dtype
    unit: float  # the relative error of one sum of D products and of what is done with it
    tiny: float  # the absolute error of one number that may be flushed to zero
    scale: float  # a power of two applied to both sides


@torch.no_grad()
def nearest_codeword(vectors: Float[Tensor, "M D"], codebook: Float[Tensor, "N D"]) -> Int64[Tensor, " M"]:
    """Index of the codeword at the exact minimum Euclidean distance; the lowest index on an exact tie.

    vectors: (M, D), codebook: (N, D), finite, on one device; both are read as float32. Paper: argmin_n ||z_k - e_n||_F.
    Extra memory is bounded by the tiles (under 64 MiB for any M and N, with D up to 4,096), never (M, N).
    Raises InputError on mismatched shapes, an empty codebook, NaN or infinity.
    """
    _check_shapes(vectors, codebook)
    vectors, codebook = vectors.detach(), codebook.detach()
    largest = max(_largest(vectors, "vectors"), _largest(codebook, "codebook"))
    stages = _stages(vectors.shape[1], largest)
    found = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    size = max(1, min(ROW_TILE, HELD // vectors.shape[1]))
    with torch.autocast(vectors.device.type, enabled=False), _full_float32():
        for start in range(0, len(vectors), size):
            found[start : start + size] = _solve(vectors[start : start + size].float(), codebook, None, stages)
    return found


def first_equal(table: Float[Tensor, "N D"]) -> Int64[Tensor, " N"]:
    """For every row the index of the first row that holds the same float32 numbers (its own if there is none).

    Rows are sorted by a 64-bit key and compared in full; rows whose keys collide by chance stay apart, which the lookup
    can afford. -0.0 and 0.0 are the same number.
    """
    return _first_equal(table, None)


def _check_shapes(vectors: Tensor, codebook: Tensor) -> None:
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1] or vectors.shape[1] == 0:
        raise InputError(
            "nearest_codeword: expected vectors (M, D) and a codebook (N, D) with the same D >= 1, "
            f"got {tuple(vectors.shape)} and {tuple(codebook.shape)}"
        )
    if codebook.shape[0] == 0:
        raise InputError("nearest_codeword: the codebook is empty, at least one codeword is needed")


def _largest(table: Tensor, name: str) -> float:
    """The largest magnitude, 0 for an empty table; refuses NaN and infinity, which aminmax passes on."""
    size = max(1, HELD // table.shape[1])
    # Results go into one tensor made beforehand: small ones kept between freed tiles would break up the heap.
    ends = torch.zeros(-(-len(table) // size) + 1, 2, device=table.device)
    for start, part in _read(table, None, size):
        ends[start // size] = torch.stack(torch.aminmax(part))
    largest = ends.abs().amax().item()
    if not largest < float("inf"):
        raise InputError(f"nearest_codeword: {name} hold NaN or infinity; distances to them have no order")
    return largest


@contextmanager
def _full_float32() -> Iterator[None]:
    # "high" and "medium" let a float32 product run in TF32 or bfloat16, outside the bound used here.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _stages(dim: int, largest: float) -> list[_Stage]:
    """The rounded passes that have a proven bound for this D.

    A sum of n terms in any order, fused or not, is off by at most gamma_n = n u / (1 - n u) times the sum of magnitudes
    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, eq. 3.5 and lemma 3.1). Beside the D products there
    are the half norm and its rounding, the norms in the bound and the comparison: fewer than eight more units.
    From n u = 1/2 on (D of 8 million in float32) the pass is left out.
    """
    scale = 1.0
    if largest > _MODERATE or 0 < largest < 1 / _MODERATE:
        scale = 2.0 ** max(-126, min(126, -int(torch.frexp(torch.tensor(largest)).exponent)))
    kinds = ((torch.float32, _UNIT32, _TINY, scale), (torch.float64, _UNIT64, 0.0, 1.0))
    steps = dim + 8
    return [
        _Stage(dtype, steps * u / (1 - steps * u), 4 * dim * tiny, scale)
        for dtype, u, tiny, scale in kinds
        if steps * u < 0.5
    ]


def _solve(rows: Tensor, codebook: Tensor, codes: Tensor | None, stages: list[_Stage]) -> Int64[Tensor, " M"]:
    """Nearest codeword of each row among `codes` (ascending; None for all), by the stages and then in integers."""
    if not stages:
        return _solve_exactly(rows, codebook, codes)
    row, code, crowded = _narrow(rows, codebook, codes, stages[0])
    decided = (torch.bincount(row, minlength=len(rows)) == 1) & ~crowded
    found = torch.zeros(len(rows), dtype=torch.int64, device=rows.device).scatter_(0, row, code)
    rest = (~decided).nonzero()[:, 0]
    if len(rest) == 0:
        return found
    if not crowded.any():
        codes = code[~decided[row]].unique()
    rows = rows[rest]
    distinct, back = _first_equal(rows, None).unique(return_inverse=True)
    found[rest] = _solve(rows[distinct], codebook, _merge(codebook, codes), stages[1:])[back]
    return found


def _merge(codebook: Tensor, codes: Tensor | None) -> Tensor | None:
    """The codes without those that repeat a lower one: a repeat never wins."""
    count = len(codebook) if codes is None else len(codes)
    if count > MERGED:
        return codes
    kept = _first_equal(codebook, codes).unique()
    return kept if codes is None else codes[kept]


def _read(table: Tensor, ids: Tensor | None, size: int) -> Iterator[tuple[int, Tensor]]:
    """Tiles of the table, or of its rows `ids`, in float32, each with the position of its first row."""
    for start in range(0, len(table) if ids is None else len(ids), size):
        part = slice(start, start + size)
        yield start, (table[part] if ids is None else table[ids[part]]).float()


def _first_equal(table: Tensor, ids: Tensor | None) -> Int64[Tensor, " N"]:
    size = max(1, HELD // 4 // table.shape[1])
    powers = [pow(_HASH, i + 1, 2**64) for i in range(table.shape[1])]
    factors = torch.tensor([p - 2**64 if p >= 2**63 else p for p in powers], device=table.device)
    # Adding zero turns -0.0 into 0.0; the sum wraps around, as a hash may.
    keys = torch.zeros(len(table) if ids is None else len(ids), dtype=torch.int64, device=table.device)
    for start, part in _read(table, ids, size):
        keys[start : start + size] = ((part + 0.0).view(torch.int32) * factors).sum(1)
    own = torch.arange(len(keys), device=table.device)
    values, inverse = keys.unique(return_inverse=True)
    first = own.new_full((len(values),), len(keys)).scatter_reduce_(0, inverse, own, "amin")[inverse]
    repeat = (first < own).nonzero()[:, 0]
    for some in repeat.split(size):
        here, there = (some, first[some]) if ids is None else (ids[some], ids[first[some]])
        same = (table[here].float() == table[there].float()).all(1)
        first[some] = torch.where(same, first[some], some)
    return first


def _narrow(
    rows: Tensor, codebook: Tensor, codes: Tensor | None, stage: _Stage
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"], Tensor]:
    """Pairs (row, code) that the bound of the stage leaves open, and the rows with too many of them to be listed.

    A codeword is open while its score less the bound does not exceed the least score plus bound seen so far.
    """
    rows = rows.to(stage.dtype) * stage.scale
    row_norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    ceiling = torch.full_like(row_norms, torch.inf)
    crowded = torch.zeros_like(ceiling, dtype=torch.bool)
    row = code = torch.zeros(0, dtype=torch.int64, device=rows.device)
    floor = torch.zeros_like(ceiling[:0])
    for start, tile in _read(codebook, codes, _tile_size(rows)):
        scores, norms = _scores(tile.to(stage.dtype) * stage.scale, rows)
        bound = stage.unit * norms * (row_norms + norms) + stage.tiny * (1 + norms + row_norms)
        minima = scores.amin(1).double()
        ceiling = torch.minimum(ceiling, (minima + bound).amin(0))
        is_open = minima - bound <= ceiling
        crowded |= is_open.sum(0) > CROWD
        group, at = (is_open & ~crowded).nonzero(as_tuple=True)
        floors = scores[group, :, at].double() - bound[group, at][:, None]
        pair, member = (floors <= ceiling[at][:, None]).nonzero(as_tuple=True)
        row, code = torch.cat([row, at[pair]]), torch.cat([code, start + group[pair] * GROUP + member])
        floor = torch.cat([floor, floors[pair, member]])
        kept = floor <= ceiling[row]
        crowded |= torch.bincount(row[kept], minlength=len(rows)) > CROWD
        kept &= ~crowded[row]
        row, code, floor = row[kept], code[kept], floor[kept]
    return row, code if codes is None else codes[code], crowded


def _tile_size(rows: Tensor) -> int:
    """Codewords in a tile: whole groups, fewer where numbers are long or rows are wide."""
    size = min(CODE_TILE * 4 // rows.element_size(), HELD // rows.shape[1])
    return max(GROUP, size // GROUP * GROUP)


def _scores(tile: Tensor, rows: Tensor) -> tuple[Float[Tensor, "G S M"], Float[Tensor, "G 1"]]:
    """|e|^2/2 - z.e by groups of codewords, infinity past the last, and the largest norm |e| in each group."""
    norms = torch.linalg.vector_norm(tile, dim=1, dtype=torch.float64)
    scores = torch.addmm((norms.square() / 2).to(tile.dtype)[:, None], tile, rows.T, alpha=-1)
    missing = -len(tile) % GROUP
    if missing:
        scores, norms = F.pad(scores, (0, 0, 0, missing), value=torch.inf), F.pad(norms, (0, missing))
    # Reducing the middle dimension runs along contiguous memory, unlike a reduction over the last one.
    return scores.view(-1, GROUP, len(rows)), norms.view(-1, GROUP).amax(1, keepdim=True)


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
        for _, part in _read(table, ids, max(1, HELD // 4 // rows.shape[1])):
            exponents = torch.frexp(part[part != 0].double()).exponent
            if len(exponents):
                low.append(int(exponents.min()) - 24)
                high.append(int(exponents.max()))
    if not low:
        return _Slices(0, 1, 1)
    bits = (53 - (rows.shape[1] - 1).bit_length()) // 2
    return _Slices(min(low), bits, -(-(max(high) - min(low)) // bits))


def _solve_exactly(rows: Tensor, codebook: Tensor, codes: Tensor | None) -> Int64[Tensor, " M"]:
    """The first of the codes at the smallest distance, in integer arithmetic."""
    slices = _slices(rows, codebook, codes)
    size = max(1, HELD // (slices.pieces * rows.shape[1]))
    found = torch.cat([_least(part, codebook, codes, slices) for part in rows.split(min(size, ROW_TILE // 4))])
    return found if codes is None else codes[found]


def _least(rows: Tensor, codebook: Tensor, codes: Tensor | None, slices: _Slices) -> Int64[Tensor, " M"]:
    """Position of the least score of each row, tile by tile; the least so far takes part as the first of a tile."""
    doubled = [(2 * part).T for part in slices.cut(rows)]
    room = min(HELD // (2 * slices.pieces * len(rows)), HELD // (slices.pieces * rows.shape[1]))
    best = found = None
    for start, tile in _read(codebook, codes, max(1, room)):
        digits = _digits(slices.cut(tile), doubled, slices.bits)
        if best is not None:
            digits = torch.cat([best, digits], 1)
        first = _first_least(digits)
        best = digits.gather(1, first.expand(len(digits), 1, -1))
        found = first if found is None else torch.where(first == 0, found, start + first - 1)
    assert found is not None
    return found[0]


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
