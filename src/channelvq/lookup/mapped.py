"""Exact nearest-codeword lookup where each token sees one shared codebook through a linear map of its own.

K tokens   D numbers in a token   r numbers in a codeword   N codewords   W (K, D, r)   c (N, r)

||z - W c_n||^2 / 2 = ||z||^2 / 2 + s_n,   s_n = ||W c_n||^2 / 2 - (W^T z) . c_n

So the order over the codewords is that of s_n, which takes r products instead of D, and W^T z is worked out once.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from channelvq.errors import NotFiniteError
from channelvq.lookup.precision import full_float32

TILE = 2**18  # scores at once: 1 MiB of float32
TILE_CUDA = 2**25

_UNIT32 = 2.0**-24
_UNIT64 = 2.0**-53
_TINY = 2.0**-120  # what numbers that are flushed to zero can amount to
_LARGEST = 2.0**60  # of a score: beyond it float32 is left out


@torch.no_grad()
def nearest_mapped(
    z: Float[Tensor, "B K D"], maps: Float[Tensor, "K D r"], codebook: Float[Tensor, "N r"]
) -> Int64[Tensor, "B K"]:
    """argmin_n ||z_k - W_k c_n|| for every token k of every image.

    W^T z and ||W c||^2 are taken in float64 from the given numbers. Scores are compared in float32; where its proven
    error bound leaves more than one codeword open, they are compared in float64, and codewords that float64's own bound
    cannot tell apart count as equally near: the lowest index of them wins. So the index is that of the exact minimum,
    but for distances that agree to about 13 digits, and depends neither on the tile nor on the batch.
    Extra memory: some tiles of scores, or some rows of N where N is larger, and (K D + N) r numbers of float64.
    Raises InputError on NaN or infinity.
    """
    if torch.compiler.is_compiling():
        return _as_one_operator(z, maps, codebook)
    with torch.autocast(z.device.type, enabled=False), full_float32():
        wide, table = maps.double(), codebook.double()
        grams = torch.bmm(wide.transpose(1, 2), wide)  # (K, r, r)
        if not (z.isfinite().all() and grams.isfinite().all() and table.isfinite().all()):
            raise NotFiniteError("nearest_mapped: vectors, maps or codebook hold NaN or infinity")
        indices = torch.empty(z.shape[1], z.shape[0], dtype=torch.int64, device=z.device)
        tile = TILE_CUDA if z.is_cuda else TILE
        tokens = max(1, tile // (len(codebook) * max(1, len(z))))
        images = max(1, tile // (len(codebook) * tokens))
        for k in range(0, len(grams), tokens):
            half_norms = torch.stack([((table @ gram) * table).sum(1) / 2 for gram in grams[k : k + tokens]])
            for b in range(0, len(z), images):
                part = z[b : b + images, k : k + tokens].double().transpose(0, 1)
                projected = torch.bmm(part, wide[k : k + tokens])
                indices[k : k + tokens, b : b + images] = _nearest(projected, half_norms, table)
    return indices.T.contiguous()


# One node of a graph, as `nearest_codeword` is and for the same reason.
@torch.library.custom_op("channelvq::nearest_mapped", mutates_args=())
def _as_one_operator(z: Tensor, maps: Tensor, codebook: Tensor) -> Tensor:
    return nearest_mapped(z, maps, codebook)


@_as_one_operator.register_fake
def _(z: Tensor, maps: Tensor, codebook: Tensor) -> Tensor:
    return z.new_empty(z.shape[:2], dtype=torch.int64)


def _nearest(
    y: Float64[Tensor, "k b r"], half_norms: Float64[Tensor, "k N"], table: Float64[Tensor, "N r"]
) -> Int64[Tensor, "k b"]:
    """The codewords of some tokens of some images: by float32, and by float64 what it leaves open."""
    # |fl(s) - s| <= unit * size: r products and sums, the rounding of both operands and of |W c|^2 / 2, its addition.
    steps = table.shape[1] + 8
    lengths = torch.linalg.vector_norm(table, dim=1).amax()
    size = torch.linalg.vector_norm(y, dim=2) * lengths + half_norms.amax(1, keepdim=True)
    if float(size.amax()) < _LARGEST:
        bound = steps * _UNIT32 / (1 - steps * _UNIT32) * size + _TINY * steps * (1 + size)
        scores = _scores(y.float(), half_norms.float(), table.float())
        least, indices = scores.min(2)
        # One unit more for the comparison itself, which is in float32.
        ceiling = (least.double() + 2 * bound + _UNIT32 * (least.abs() + size)).float()
        still_open = (scores <= ceiling[:, :, None]).sum(2) > 1
    else:
        indices = torch.zeros(y.shape[:2], dtype=torch.int64, device=y.device)
        still_open = torch.ones_like(indices, dtype=torch.bool)
    token, image = still_open.nonzero(as_tuple=True)
    rows = max(1, TILE // len(table))
    for t, i in zip(token.split(rows), image.split(rows), strict=True):
        scores = half_norms[t] - y[t, i] @ table.T
        bound = steps * _UNIT64 / (1 - steps * _UNIT64) * size[t, i]
        near = scores <= (scores.amin(1) + 2 * bound)[:, None]
        indices[t, i] = _first(near)
    return indices


def _scores(
    y: Float[Tensor, "k b r"], half_norms: Float[Tensor, "k N"], table: Float[Tensor, "N r"]
) -> Float[Tensor, "k b N"]:
    return torch.baddbmm(half_norms[:, None], y, table.T.expand(len(y), -1, -1), alpha=-1)


def _first(marked: Tensor) -> Int64[Tensor, " M"]:
    """The first True of each row; argmax alone may give any of several."""
    places = torch.arange(marked.shape[1], device=marked.device)
    return torch.where(marked, places, marked.shape[1]).amin(1)
