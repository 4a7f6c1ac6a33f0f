"""Exact nearest-codeword lookup in bounded memory.

    M vectors   N codewords   D numbers in each

Passes over |e|^2/2 - z.e, whose order over the codewords is that of the distance; each looks again at what the one
before left undecided (HOW.md in this folder):

    bfloat16  where the processor multiplies it faster: groups of codewords that the proven error bound leaves open, and
              their codewords in float32
    float32   in tiles with a running minimum: the first pass elsewhere
    float64   the rows and codewords that the bound of float32 leaves open
    integers  the same without rounding: numbers cut into slices so short that float64 products of them are exact

Nearly every row of ordinary data is decided by the first. Bit-equal rows and codewords are merged before the later
passes. So the index depends on the numbers alone: not on tile, batch, threads, layout, autocast or device.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from channelvq.errors import InputError, NotFiniteError
from channelvq.lookup import bfloat16, rounded
from channelvq.lookup.equal import first_equal, merge
from channelvq.lookup.integers import solve_exactly
from channelvq.lookup.precision import full_float32
from channelvq.lookup.tiles import HELD, Open, Stage, read

ROW_TILE = 2048

_UNIT32 = 2.0**-24
_UNIT64 = 2.0**-53
_TINY = 2.0**-126  # the smallest normal float32: a number below it may be flushed to zero
_MODERATE = 1e9  # beyond it, or below its inverse, squares and their sums could leave the range of float32

Pass = Callable[[Tensor, Tensor, Tensor | None], Open]


@torch.no_grad()
def nearest_codeword(vectors: Float[Tensor, "M D"], codebook: Float[Tensor, "N D"]) -> Int64[Tensor, " M"]:
    """Index of the codeword at the exact minimum Euclidean distance; the lowest index on an exact tie.

    vectors: (M, D), codebook: (N, D), finite, on one device; both are read as float32. Paper: argmin_n ||z_k - e_n||_F.
    Extra memory is bounded by the tiles (under 64 MiB for any M and N, with D up to 4,096), never (M, N).
    Raises InputError on mismatched shapes, an empty codebook, NaN or infinity.
    """
    if torch.compiler.is_compiling():
        return _as_one_operator(vectors, codebook)
    _check_shapes(vectors, codebook)
    vectors, codebook = vectors.detach(), codebook.detach()
    largest = max(_largest_magnitude(vectors, "vectors"), _largest_magnitude(codebook, "codebook"))
    stages = _stages_for(vectors.shape[1], largest)
    indices = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    with torch.autocast(vectors.device.type, enabled=False), full_float32():
        for part in _row_tiles(vectors):
            rows = vectors[part].float()
            passes: list[Pass] = [partial(rounded.narrow, stage=stage) for stage in stages]
            if stages and bfloat16.pays(rows, codebook):
                passes.insert(0, partial(bfloat16.narrow, stage=stages[0]))
            indices[part] = _solve(rows, codebook, None, passes)
    return indices


# How many rows a pass leaves open is known when it has run, which a graph cannot hold: it holds the lookup as one node.
@torch.library.custom_op("channelvq::nearest_codeword", mutates_args=())
def _as_one_operator(vectors: Tensor, codebook: Tensor) -> Tensor:
    return nearest_codeword(vectors, codebook)


@_as_one_operator.register_fake
def _(vectors: Tensor, codebook: Tensor) -> Tensor:
    return vectors.new_empty(vectors.shape[0], dtype=torch.int64)


def _check_shapes(vectors: Tensor, codebook: Tensor) -> None:
    """InputError unless both are tables of the same width on one device and there is a codeword."""
    for name, table in (("vectors", vectors), ("codebook", codebook)):
        if not isinstance(table, Tensor):
            raise InputError(f"nearest_codeword: {name} is a {type(table).__name__}; give torch.as_tensor({name})")
        if table.dtype.is_complex or table.dtype == torch.bool:
            raise InputError(f"nearest_codeword: expected {name} of real numbers, got {table.dtype}")
    if vectors.device != codebook.device:
        raise InputError(
            f"nearest_codeword: the vectors are on {vectors.device}, the codebook on {codebook.device}; "
            "move them to one device"
        )
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1] or vectors.shape[1] == 0:
        raise InputError(
            "nearest_codeword: expected vectors (M, D) and a codebook (N, D) with the same D >= 1, "
            f"got {tuple(vectors.shape)} and {tuple(codebook.shape)}"
        )
    if codebook.shape[0] == 0:
        raise InputError("nearest_codeword: the codebook is empty, at least one codeword is needed")


def _largest_magnitude(table: Tensor, name: str) -> float:
    """The largest magnitude, 0 for an empty table; refuses NaN and infinity, which aminmax passes on."""
    size = max(1, HELD // table.shape[1])
    # Results go into one tensor made beforehand: small ones kept between freed tiles would break up the heap.
    ends = torch.zeros(-(-len(table) // size) + 1, 2, device=table.device)
    for start, part in read(table, None, size):
        ends[start // size] = torch.stack(torch.aminmax(part))
    largest = ends.abs().amax().item()
    if not largest < float("inf"):
        raise NotFiniteError(f"nearest_codeword: {name} hold NaN or infinity; distances to them have no order")
    return largest


def _row_tiles(vectors: Tensor) -> list[slice]:
    """Equal shares of the rows: a last tile of few would pay for reading all of the codebook as much as a full one."""
    size = max(1, min(ROW_TILE, 8 * HELD // vectors.shape[1]))
    count = -(-len(vectors) // size)
    ends = [len(vectors) * i // count for i in range(count + 1)] if count else [0]
    return [slice(a, b) for a, b in pairwise(ends)]


def _stages_for(dim: int, largest: float) -> list[Stage]:
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
        Stage(dtype, steps * u / (1 - steps * u), 4 * dim * tiny, scale)
        for dtype, u, tiny, scale in kinds
        if steps * u < 0.5
    ]


def _solve(rows: Tensor, codebook: Tensor, codes: Tensor | None, passes: list[Pass]) -> Int64[Tensor, " M"]:
    """Nearest codeword of each row among `codes` (ascending; None for all), by the passes and then in integers."""
    if not passes:
        return solve_exactly(rows, codebook, codes)
    row, code, crowded = passes[0](rows, codebook, codes)
    decided = (torch.bincount(row, minlength=len(rows)) == 1) & ~crowded
    indices = torch.zeros(len(rows), dtype=torch.int64, device=rows.device).scatter_(0, row, code)
    rest = (~decided).nonzero()[:, 0]
    if len(rest) == 0:
        return indices
    if not crowded.any():
        codes = code[~decided[row]].unique()
    rows = rows[rest]
    distinct, back = first_equal(rows).unique(return_inverse=True)
    if codes is not None or len(passes) <= 2:  # looking for equal codewords in all of the codebook is dear for few rows
        codes = merge(codebook, codes)
    indices[rest] = _solve(rows[distinct], codebook, codes, passes[1:])[back]
    return indices
