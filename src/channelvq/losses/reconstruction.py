"""Pixel losses between images in [-1, 1], averaged over every element."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

PixelLoss = Literal["l2", "l1"]


def pixel_loss(x_hat: Float[Tensor, "B 3 H W"], x: Float[Tensor, "B 3 H W"], kind: PixelLoss) -> Float[Tensor, ""]:
    """Mean squared (l2, the paper's) or mean absolute (l1) difference."""
    return F.mse_loss(x_hat, x) if kind == "l2" else F.l1_loss(x_hat, x)
