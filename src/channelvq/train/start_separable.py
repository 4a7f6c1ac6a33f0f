"""The start of the separable linear coder (nn/separable.py): two small sets of components for a large one.

channel axis: components of pixel blocks, wherever they are; then, of each of these features, components of its grid
patch axis:   components of pixel blocks alone: a token must not know more than its patch
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from channelvq.errors import InputError
from channelvq.images import normalize
from channelvq.nn.separable import SeparableMap
from channelvq.principal import ALL_ALIKE, above_water, directions

ROWS = 64  # images in float32 at once


class SeparableStart(NamedTuple):
    """What `SeparableMap.place` takes, but for the slots; variances: of the chosen coefficients, in falling order."""

    mean: Float[Tensor, " P"]
    block: Float[Tensor, "F b"]
    grid: Float[Tensor, "F G G"]
    variances: Float64[Tensor, "F G"]


@torch.no_grad()
def fit_separable(images: UInt8[Tensor, "n 3 H W"], part: SeparableMap, *, whole_grid: bool) -> SeparableStart:
    """Transforms for images like these; whole_grid: patterns over all places, else each place by itself.

    Two passes over the images. Raises InputError for images that are all the same.
    """
    side, (features, places, _) = part.block_side, part.grid.shape
    mean = sum((normalize(x).double().sum(0) for x in images.split(ROWS)), torch.zeros((), dtype=torch.float64))
    mean = (mean / len(images)).float().to(images.device)
    block_moments = torch.zeros(3 * side**2, 3 * side**2, dtype=torch.float64, device=images.device)
    for x in images.split(ROWS):
        blocks = F.pixel_unshuffle(normalize(x) - mean, side).flatten(2).transpose(1, 2).flatten(0, 1)
        block_moments += (blocks.T @ blocks).double() / len(images)
    variances, columns = directions(block_moments)
    if not float(variances[0]) > 1e-9:
        raise InputError(ALL_ALIKE)
    block = columns.T[:features].float().contiguous()
    moments = torch.zeros(features, places, places, dtype=torch.float64, device=images.device)
    for x in images.split(ROWS):
        found = (block @ F.pixel_unshuffle(normalize(x) - mean, side).flatten(2)).transpose(0, 1)
        moments += torch.bmm(found.transpose(1, 2), found).double() / len(images)
    if whole_grid:
        spread, patterns = directions(moments)
        spread, grid = spread.clamp(min=0), patterns.transpose(1, 2).float().contiguous()
    else:
        spread = moments.diagonal(dim1=1, dim2=2).clone()
        grid = torch.eye(places, device=images.device).repeat(features, 1, 1)
    return SeparableStart(mean.flatten(), block, grid, spread)


def largest(start: SeparableStart, count: int) -> tuple[Int64[Tensor, " m"], Float64[Tensor, " m"]]:
    """(places in the flat list of coefficients, variances) of the `count` largest, in falling order."""
    variances, chosen = start.variances.flatten().sort(descending=True, stable=True)
    real = int((variances[:count] > 1e-9 * variances[0]).sum())
    return chosen[:real], variances[:real]


def of_patches(start: SeparableStart, bits: float, most: int) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """(places in the flat list, slots) of each patch's features above its own water level, `most` at most."""
    variances = start.variances.T.contiguous()  # (places, F), in about falling order
    variances, order = variances.sort(dim=1, descending=True, stable=True)
    patch, place = above_water(variances, bits, 1e-9)[:, :most].nonzero(as_tuple=True)
    places = len(variances)
    return order[patch, place] * places + patch, place * places + patch
