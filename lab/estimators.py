"""Other ways through the rounding than straight-through, as modules that stand where `ChannelVQ` stands.

Straight-through copies the gradient of z_q to z. The rotation trick (Fifty et al. 2024, arXiv 2410.06424) turns and
scales it as z is turned and scaled into its codeword. DiVeQ (Vali et al. 2025, arXiv 2509.26469) writes
z_q = z + |c - z| v with the direction v held, so that the length teaches z and, where codewords learn by gradient, c:
its paper takes no further loss for these.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq import ChannelVQ

NOISE = 1e-3  # sigma^2 of DiVeQ's direction
_SMALL = 1e-6


def rotation_trick(z: Float[Tensor, "*n D"], codes: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
    """The codes, as lambda (z - 2 r r^T z + 2 q p^T z) with all but z held; p, q: directions of z and of the codes."""
    held, codes = z.detach(), codes.detach()
    length, wanted = (t.norm(dim=-1, keepdim=True).clamp_min(_SMALL) for t in (held, codes))
    p, q = held / length, codes / wanted
    r = F.normalize(p + q, dim=-1)
    turned = z - 2 * (z * r).sum(-1, keepdim=True) * r + 2 * (z * p).sum(-1, keepdim=True) * q
    return turned * (wanted / length)


def diveq(z: Float[Tensor, "*n D"], codes: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
    """Nearly the codes: z + |codes - z| v, v the held direction of codes - z with a little noise."""
    away = codes - z
    direction = F.normalize(away.detach() + NOISE**0.5 * torch.randn_like(z), dim=-1)
    return z + away.norm(dim=-1, keepdim=True) * direction


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"rotation trick": rotation_trick, "DiVeQ": diveq}


class Estimated(nn.Module):
    """A ChannelVQ whose gradient takes another way in training."""

    def __init__(self, vq: ChannelVQ, estimator: str) -> None:
        super().__init__()
        self.vq, self.estimator = vq, ESTIMATORS[estimator]
        # Codewords that learn by gradient learn by the error of the picture; those of moving averages have no gradient.
        self.without_loss = self.estimator is diveq and vq.codes().requires_grad

    def forward(self, z: Float[Tensor, "B C h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """As `ChannelVQ`."""
        z_q, ids, loss = self.vq(z)
        if not self.training:
            return z_q, ids, loss
        # Not the table of moving averages: it has moved on since these codes were read.
        codes = F.embedding(ids, table) if (table := self.vq.codes()).requires_grad else z_q.detach().flatten(2)
        return self.estimator(z.flatten(2), codes).view_as(z), ids, 0 * loss if self.without_loss else loss
