"""Distances of two sets of images by the features of a network: the kernel distance of KID and the Frechet distance of
FID, whatever the network. What they may be called depends on it: see evaluate/features.py.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torchmetrics.image.fid import _compute_fid  # the formula alone; the class around it wants its own Inception
from torchmetrics.image.kid import poly_mmd

from channelvq.errors import InputError, NotFiniteError
from channelvq.evaluate.metrics import SetMetric

IMAGES_PER_DIMENSION = 20  # a covariance from fewer is mostly noise, and the Frechet distance mostly bias
FEWEST_FOR_KID = 3  # of two images the unbiased estimate is anything, below zero too
_DIMENSIONS = (64, 32, 16)
_BLOCK = 4096  # images at once in a kernel distance: three matrices of 4,096 x 4,096 in float64 are 400 MB


def kernel_distance(x: Float[Tensor, "n E"], y: Float[Tensor, "n E"]) -> float:
    """KID's unbiased squared maximum mean discrepancy, kernel (x.y / E + 1)^3 (Binkowski et al. 2018, eq. 3 and 4).

    All images at once instead of random subsets; of more than 4,096 the mean over whole blocks of that many, in order.
    Raises InputError for sets of unequal size (the library's estimate is wrong for them) and for fewer than two images.
    """
    _check(x, y)
    if len(x) != len(y):
        raise InputError(f"kernel_distance: expected two sets of one size, got {len(x)} and {len(y)} images")
    rows = min(_BLOCK, len(x))
    pairs = zip(x.double().split(rows), y.double().split(rows), strict=True)
    values = [float(poly_mmd(a, b)) for a, b in pairs if len(a) == rows]
    return sum(values) / len(values)


def frechet_distance(x: Float[Tensor, "n E"], y: Float[Tensor, "m E"]) -> float:
    """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) of the features' means and covariances (Heusel et al. 2017).

    Raises InputError for fewer than 20 images a dimension: project the features first (`projected`), or say nothing.
    """
    _check(x, y)
    if min(len(x), len(y)) < IMAGES_PER_DIMENSION * x.shape[1]:
        raise InputError(
            f"frechet_distance: {x.shape[1]} dimensions need {IMAGES_PER_DIMENSION * x.shape[1]} images or more, got "
            f"{len(x)} and {len(y)}; project the features to fewer dimensions, or use the kernel distance"
        )
    (mean_x, covariance_x), (mean_y, covariance_y) = ((z.mean(dim=0), torch.cov(z.T)) for z in (x.double(), y.double()))
    return float(_compute_fid(mean_x, covariance_x, mean_y, covariance_y))


def frechet_dimensions(num_images: int, width: int) -> int | None:
    """How many of `width` dimensions a Frechet distance of so many images may have: 64, 32, 16, or none at all."""
    most = num_images // IMAGES_PER_DIMENSION
    return next((d for d in _DIMENSIONS if d <= min(most, width)), None)


def projected(x: Float[Tensor, "n E"], dimensions: int) -> Float64[Tensor, "n d"]:
    """Features on a subspace that was drawn once and for all, with seed 0: the same for every set and data set."""
    gaussian = torch.randn(x.shape[1], dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.double() @ torch.linalg.qr(gaussian).Q


def _projected_frechet(x: Tensor, y: Tensor) -> float | None:
    dimensions = frechet_dimensions(len(x), x.shape[1])
    return None if dimensions is None else frechet_distance(projected(x, dimensions), projected(y, dimensions))


def _projection(num_images: int, width: int) -> str:
    dimensions = frechet_dimensions(num_images, width)
    return _REFUSED if dimensions is None else f"{dimensions} of {width} dimensions, a subspace drawn with seed 0"


def _full_frechet(x: Tensor, y: Tensor) -> float | None:
    return frechet_distance(x, y) if len(x) >= IMAGES_PER_DIMENSION * x.shape[1] else None


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise InputError(
            f"features: expected (n, E) and (m, E) of two images or more, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise NotFiniteError("features: they hold NaN or infinity; the weights of their network are damaged")


_REFUSED = f"refused: fewer than {IMAGES_PER_DIMENSION} images a dimension"
KID = SetMetric(
    heading="KID", better="lower", measure=lambda x, y: kernel_distance(x, y) if len(x) >= FEWEST_FOR_KID else None,
    definition=lambda num_images, _: (
        f"unbiased MMD^2, kernel (x.y / E + 1)^3, all images at once (blocks of {_BLOCK})"
        if num_images >= FEWEST_FOR_KID else f"refused: fewer than {FEWEST_FOR_KID} images"
    ),
)  # fmt: skip
FRECHET = SetMetric(
    heading="Frechet", better="lower", measure=_projected_frechet, definition=_projection, spaces=("perceptual",),
)  # fmt: skip
# The published figure is of all dimensions or it is not FID.
FID = SetMetric(
    heading="FID", better="lower", measure=_full_frechet, spaces=("inception",), libraries=("torch-fidelity",),
    definition=lambda num_images, width: (
        f"{width} dimensions" if num_images >= IMAGES_PER_DIMENSION * width else _REFUSED
    ),
)  # fmt: skip
