"""Exact nearest-codeword lookup in bounded memory.

    M vectors   N codewords   D numbers in each

A fast float32 pass over tiles computes |e|^2/2 - z.e, whose order over the codewords is that of the distance, and keeps
the minimum of every group of `GROUP` codewords. Groups that cannot hold the winner, given the proven error bound of the
pass, are dropped; the rest are settled in float64, and what lies inside float64's own bound in exact fractions. So the
index depends on the numbers alone: not on tile, batch, threads, layout, autocast or device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from channelvq.errors import InputError

ROW_TILE = 2048
CODE_TILE = 1024
GROUP = 32
SETTLE_ELEMENTS = 2**20  # float64 numbers held at once while settling: 8 MiB

_UNIT32 = 2.0**-24
_UNIT64 = 2.0**-53
_TINY = 2.0**-126  # the smallest normal float32: a product below it may be flushed to zero
_LARGE = 1e9  # above it squares and their sums could overflow float32


@torch.no_grad()
def nearest_codeword(vectors: Float[Tensor, "M D"], codebook: Float[Tensor, "N D"]) -> Int64[Tensor, " M"]:
    """Index of the codeword at the exact minimum Euclidean distance; the lowest index on an exact tie.

    vectors: (M, D), codebook: (N, D), finite, on one device; both are read as float32. Paper: argmin_n ||z_k - e_n||_F.
    Extra memory is bounded by the tiles (under 64 MiB for N up to 131,072), never (M, N).
    Raises InputError on mismatched shapes, an empty codebook, NaN or infinity.
    """
    _check(vectors, codebook)
    vectors, codebook = vectors.detach().float(), codebook.detach().float()
    if vectors.shape[0] == 0:
        return torch.zeros(0, dtype=torch.int64, device=vectors.device)
    with torch.autocast(vectors.device.type, enabled=False), _full_float32():
        scale = _safe_scale(vectors, codebook)
        half_norms, group_norms = _norms(codebook, scale)
        tiles = [_nearest_rows(rows, codebook, half_norms, group_norms, scale) for rows in vectors.split(ROW_TILE)]
    return torch.cat(tiles)


def _check(vectors: Tensor, codebook: Tensor) -> None:
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1] or vectors.shape[1] == 0:
        raise InputError(
            "nearest_codeword: expected vectors (M, D) and a codebook (N, D) with the same D >= 1, "
            f"got {tuple(vectors.shape)} and {tuple(codebook.shape)}"
        )
    if codebook.shape[0] == 0:
        raise InputError("nearest_codeword: the codebook is empty, at least one codeword is needed")
    for name, tensor in (("vectors", vectors), ("codebook", codebook)):
        if not torch.isfinite(tensor).all():
            raise InputError(f"nearest_codeword: {name} hold NaN or infinity; distances to them have no order")


@contextmanager
def _full_float32() -> Iterator[None]:
    # "high" and "medium" let a float32 product run in TF32 or bfloat16, outside the bound used here.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _safe_scale(vectors: Tensor, codebook: Tensor) -> float:
    """A power of two that keeps the float32 pass away from overflow; 1 for all ordinary data."""
    largest = max(vectors.abs().max().item(), codebook.abs().max().item())
    return 1.0 if largest <= _LARGE else 2.0 ** -torch.frexp(torch.tensor(largest)).exponent.item()


def _norms(codebook: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Half of the squared norm of every codeword, (N,) float32, and the largest norm of every group, (G,) float64."""
    squares = torch.cat([(tile.double() * scale).square().sum(1) for tile in codebook.split(CODE_TILE)])
    padded = F.pad(squares, (0, -len(squares) % GROUP))
    return (squares / 2).float(), padded.view(-1, GROUP).amax(1).sqrt()


def _nearest_rows(rows: Tensor, codebook: Tensor, half_norms: Tensor, group_norms: Tensor, scale: float) -> Tensor:
    minima = _group_minima(rows * scale if scale != 1.0 else rows, codebook, half_norms, scale)
    row_norms = (rows.double() * scale).square().sum(1).sqrt()
    return _settle(rows, codebook, _open_groups(minima, row_norms, group_norms, rows.shape[1]))


def _group_minima(rows: Tensor, codebook: Tensor, half_norms: Tensor, scale: float) -> Float[Tensor, "G M"]:
    """Minimum over each group of codewords of |e|^2/2 - z.e, in float32."""
    minima = []
    for start in range(0, codebook.shape[0], CODE_TILE):
        tile = codebook[start : start + CODE_TILE]
        scores = torch.addmm(
            half_norms[start : start + CODE_TILE, None], tile * scale if scale != 1.0 else tile, rows.T, alpha=-1
        )
        if len(tile) % GROUP:
            scores = F.pad(scores, (0, 0, 0, -len(tile) % GROUP), value=torch.inf)
        # Reducing the middle dimension runs along contiguous memory, unlike a reduction over the last one.
        minima.append(scores.view(-1, GROUP, rows.shape[0]).amin(1))
    return torch.cat(minima)


def _open_groups(minima: Tensor, row_norms: Tensor, group_norms: Tensor, dim: int) -> Bool[Tensor, "G M"]:
    """Groups that may hold the nearest codeword once the float32 pass is off by as much as it can be.

    A dot product of D terms in any order, fused or not, is off by at most gamma_D |z||e| (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, eq. 3.5); the half norm and the last addition add two more units.
    """
    unit = (dim + 8) * _UNIT32
    bound = unit * (group_norms[:, None] * row_norms + group_norms[:, None].square()) + 4 * dim * _TINY
    minima = minima.double()
    return minima - bound <= (minima + bound).amin(0)


def _settle(rows: Tensor, codebook: Tensor, is_open: Tensor) -> Tensor:
    """The nearest codeword of each row among its open groups, by float64 and, inside its bound, exactly."""
    row_of, group_of = is_open.T.nonzero(as_tuple=True)
    codes = group_of[:, None] * GROUP + torch.arange(GROUP, device=rows.device)
    distances = _distances64(rows, codebook, row_of, codes)
    best = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
    best.scatter_reduce_(0, row_of, distances.amin(1), "amin")
    # Difference, square and sum are each off by a relative unit, whatever the order of the sum.
    limit = best * (1 + 4 * (rows.shape[1] + 4) * _UNIT64)
    pair, member = (distances <= limit[row_of][:, None]).nonzero(as_tuple=True)
    candidate_row, candidate = row_of[pair], codes[pair, member]
    nearest = torch.full((len(rows),), codebook.shape[0], dtype=torch.int64, device=rows.device)
    nearest.scatter_reduce_(0, candidate_row, candidate, "amin")
    counts = torch.bincount(candidate_row, minlength=len(rows))
    for row in (counts > 1).nonzero()[:, 0].tolist():
        nearest[row] = _settle_exactly(rows[row], codebook, candidate[candidate_row == row].sort().values)
    return nearest


def _distances64(rows: Tensor, codebook: Tensor, row_of: Tensor, codes: Tensor) -> Float[Tensor, "P G"]:
    """Squared distances in float64 of each pair's row to the codewords of its group; infinity past the last one."""
    chunk = max(1, SETTLE_ELEMENTS // (GROUP * rows.shape[1]))
    last = codebook.shape[0] - 1
    parts = []
    for row, code in zip(row_of.split(chunk), codes.split(chunk), strict=True):
        difference = codebook[code.clamp(max=last)].double() - rows[row].double()[:, None]
        parts.append(difference.square_().sum(2).masked_fill_(code > last, torch.inf))
    return torch.cat(parts)


def _settle_exactly(row: Tensor, codebook: Tensor, candidates: Tensor) -> int:
    """The first of the sorted candidates at the smallest distance in exact arithmetic."""
    words = codebook[candidates]
    if (words == words[0]).all():
        return int(candidates[0])
    exact_row = [Fraction(value) for value in row.tolist()]
    distances = [sum((Fraction(e) - z) ** 2 for e, z in zip(word, exact_row, strict=True)) for word in words.tolist()]
    return int(candidates[min(range(len(distances)), key=distances.__getitem__)])
