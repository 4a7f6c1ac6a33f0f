"""Principal directions, and what each of them is worth: where linear coders, codebooks and the PCA baseline start.

moments (n, n), symmetric -> variances lambda_i in falling order, directions
bits of direction i: max(0, 1/2 log2(lambda_i / theta)), theta the water level (Cover and Thomas, 10.3.3)
"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

ALL_ALIKE = "start: the images are all the same; principal components need some thousand different ones"


def directions(moments: Float[Tensor, "... n n"]) -> tuple[Float[Tensor, "... n"], Float[Tensor, "... n n"]]:
    """(variances in falling order, their directions as columns) of second moments; rounding leaves some below 0."""
    variances, columns = torch.linalg.eigh(moments)
    return variances.flip(-1), columns.flip(-1)


def signed(vectors: Float[Tensor, "... n m"], dim: int) -> Float[Tensor, "... n m"]:
    """The sign of a direction is arbitrary: the entry of the largest magnitude along `dim` is made positive."""
    peaks = vectors.gather(dim, vectors.abs().argmax(dim, keepdim=True))
    return vectors * torch.where(peaks < 0, -1.0, 1.0)


def water_level(variances: Float64[Tensor, "... n"], bits: float) -> Float64[Tensor, "... 1"]:
    """Water level of the reverse water-filling, theta of sum_i max(0, 1/2 log2(variance_i / theta)) = bits.

    variances: in falling order along the last dimension. Exact: with the m largest above it, log2 theta is their mean
    log2 less 2 bits / m. 0 where no variance is above 0.
    """
    logs = variances.clamp(min=1e-300).log2()
    counts = torch.arange(1, logs.shape[-1] + 1, dtype=logs.dtype, device=logs.device)
    levels = (logs.cumsum(-1) - 2 * bits) / counts
    # The right m is the one of the highest level: adding a component below the level lowers it again.
    level = levels.amax(-1, keepdim=True).exp2()
    return torch.where(variances.amax(-1, keepdim=True) > 0, level, 0.0)


def above_water(variances: Float64[Tensor, "... n"], bits: float, rounding: float) -> Bool[Tensor, "... n"]:
    """Which get some of the bits; below `rounding` times the largest is what rounding leaves where there are none."""
    return variances > torch.maximum(water_level(variances, bits), rounding * variances[..., :1])
