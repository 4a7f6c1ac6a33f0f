"""Distances in the features of our perceptual network: of each pair of images, and of two sets.

They are not LPIPS and not KID over Inception, and are not comparable with published figures of either.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from channelvq.evaluate.metrics import check_images
from channelvq.images import normalize
from channelvq.losses.perceptual import FeatureDistance
from channelvq.nn.perceptual import PerceptualNetwork

PART = 64


@torch.no_grad()
def perceptual_distances(
    network: PerceptualNetwork, x_hat: UInt8[Tensor, "n 3 h w"], x: UInt8[Tensor, "n 3 h w"]
) -> Float[Tensor, " n"]:
    """Distance of each pair (`FeatureDistance`), from uint8 images; raises InputError for others."""
    check_images(x_hat)
    check_images(x)
    distance = FeatureDistance(network)
    pairs = zip(x_hat.split(PART), x.split(PART), strict=True)
    return torch.cat([distance(normalize(a), normalize(b)) for a, b in pairs])


@torch.no_grad()
def kernel_distance(network: PerceptualNetwork, x_hat: UInt8[Tensor, "n 3 h w"], x: UInt8[Tensor, "m 3 h w"]) -> float:
    """KID's unbiased squared maximum mean discrepancy, cubic kernel (Binkowski et al. 2018, eq. 3 and 4).

    Over the network's embeddings scaled to unit variance a number, and all images at once instead of random subsets.
    """
    check_images(x_hat)
    check_images(x)
    sets = [torch.cat([network(normalize(part)) for part in images.split(PART)]).double() for images in (x_hat, x)]
    scale = sets[0].shape[1] ** 0.5  # unit vectors of E numbers: a variance of 1/E
    return float(poly_mmd(sets[1] * scale, sets[0] * scale))
