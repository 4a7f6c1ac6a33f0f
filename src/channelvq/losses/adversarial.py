"""Adversarial loss: a PatchGAN discriminator, the hinge loss, and the weights that keep the game stable.

x (B, 3, H, W) in [-1, 1] -> discriminator -> one logit for each patch (B, 1, h, w); positive means real.

    discriminator   mean(relu(1 - D(x))) + mean_i(w_i relu(1 + D(x_hat_i)))          (Lim and Ye 2017, hinge)
    tokenizer       lambda * mean_i(w_i * -D(x_hat_i))
    w_i             ramp(step) * lambda_0 / (1 + exp(-eta (c_keep_i - c / 2)))       (CVQ paper, nested dropout)
    lambda          |d L_rec / d w_last| / |d L_adv / d w_last|                      (Esser et al. 2021, eq. 7)
"""

from typing import Annotated

import torch
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.config import STRICT
from channelvq.nn.layers import group_norm

NonNegative = Annotated[float, Field(ge=0)]
SMALLEST_GRADIENT = 1e-4  # floor of the adaptive weight's denominator
LARGEST_ADAPTIVE = 1e4
GRADIENT_SCALE = 1024.0
LECAM_DECAY = 0.99


@dataclass(frozen=True, config=STRICT)
class AdversarialConfig:
    """The discriminator and its game; every term is in float32.

    weight: lambda_0. start_step, ramp_steps: nothing before, then linearly up to full weight; the discriminator begins
    at start_step too. eta: how fast the weight falls for short prefixes (paper: 0.05 at c = 256); prefix_weight: False
    gives every prefix the same weight. adaptive: balance the gradients at the decoder's last layer.
    layers, base_channels: of the PatchGAN. lr_ratio: its learning rate over the tokenizer's.
    r1: weight of the gradient penalty on real images (Mescheder et al. 2018). lecam: weight of the regulariser that
    holds logits near the moving averages of the other side (Tseng et al. 2021).
    """

    weight: PositiveFloat = 1.0
    start_step: NonNegativeInt = 0
    ramp_steps: NonNegativeInt = 0
    prefix_weight: bool = True
    eta: NonNegative = 0.05
    adaptive: bool = True
    layers: PositiveInt = 2
    base_channels: PositiveInt = 64
    lr_ratio: PositiveFloat = 1.0
    r1: NonNegative = 0.0
    lecam: NonNegative = 0.0


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017) with group norm: nothing in it depends on the rest of the batch."""

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        width = config.base_channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for depth in range(1, config.layers + 1):
            before, width = width, config.base_channels * min(2**depth, 8)
            stride = 2 if depth < config.layers else 1
            layers += [nn.Conv2d(before, width, 4, stride, 1, bias=False), group_norm(width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        # Moving averages of the logits, for LeCam; part of the state, so that a resumed run goes on with them.
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 h w"]:
        """Logits in float32."""
        return self.layers(x).float()

    @torch.no_grad()
    def note(self, real: Tensor, fake: Tensor) -> None:
        """Move the averages towards the logits of a batch."""
        for mean, logits in ((self.real_mean, real), (self.fake_mean, fake)):
            mean.lerp_(logits.mean(), 1 - LECAM_DECAY)


def ramp(config: AdversarialConfig, step: int) -> float:
    """0 before start_step, then linearly up to 1 over ramp_steps."""
    if step < config.start_step:
        return 0.0
    return min(1.0, (step - config.start_step + 1) / max(1, config.ramp_steps))


def prefix_weights(config: AdversarialConfig, keep: Int64[Tensor, " B"], num_channels: int) -> Float[Tensor, " B"]:
    """lambda(c_keep) over lambda_0, for each image; 1 where the prefix does not matter. Paper, nested dropout."""
    if not config.prefix_weight:
        return torch.ones(len(keep), device=keep.device)
    return torch.sigmoid(config.eta * (keep.float() - num_channels / 2))


def hinge_discriminator(
    real: Float[Tensor, "B 1 h w"], fake: Float[Tensor, "B 1 h w"], weights: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """The discriminator's hinge loss; weights: of each reconstruction, so that both sides play one game."""
    return F.relu(1 - real).mean() + (weights * F.relu(1 + fake).mean((1, 2, 3))).mean()


def hinge_generator(fake: Float[Tensor, "B 1 h w"], weights: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """The tokenizer's side."""
    return -(weights * fake.mean((1, 2, 3))).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Float[Tensor, ""]:
    """Ratio of the two losses' gradients at the decoder's last weights: in float32, with a floor, itself a constant."""
    # Scaled on the way back, so that half precision does not lose small gradients; the ratio is the same.
    norms = [
        torch.autograd.grad(loss * GRADIENT_SCALE, last_layer, retain_graph=True)[0].float().norm() / GRADIENT_SCALE
        for loss in (reconstruction, adversarial)
    ]
    return (norms[0] / norms[1].clamp(min=SMALLEST_GRADIENT)).clamp(max=LARGEST_ADAPTIVE).detach()


def r1_penalty(discriminator: nn.Module, real: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
    """Mean over images of the squared gradient of their summed logits."""
    x = real.detach().requires_grad_(True)
    with torch.autocast(x.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def lecam(discriminator: PatchDiscriminator, real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Squared hinge of real logits above the average fake one, and of fake ones below the average real one.

    Tseng et al. 2021 (arXiv 2104.03310), with the one-sided distance of its authors' experiments.
    """
    return (
        F.relu(real - discriminator.fake_mean).square().mean() + F.relu(discriminator.real_mean - fake).square().mean()
    )
