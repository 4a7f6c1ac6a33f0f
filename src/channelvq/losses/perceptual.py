"""Perceptual loss: how far apart two images are in the features of a network."""

import importlib

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from channelvq.config import STRICT
from channelvq.errors import InputError
from channelvq.nn.perceptual import PerceptualNetwork

SMALLEST_NORM = 1e-6


@dataclass(frozen=True, config=STRICT)
class PerceptualLossConfig:
    """network: "bundled" (ours), a folder of one like it, or "lpips-vgg" / "lpips-alex" (the official LPIPS)."""

    weight: PositiveFloat = 1.0
    network: str = "bundled"

    def build(self) -> nn.Module:
        """A frozen module (x_hat, x) -> distance of each image; raises InputError where the network cannot be had."""
        if self.network.startswith("lpips-"):
            module: nn.Module = _Lpips(self.network)
        else:
            module = FeatureDistance(PerceptualNetwork.load(self.network))
        return module.eval().requires_grad_(False)


class FeatureDistance(nn.Module):
    """The distance of LPIPS (Zhang et al. 2018, eq. 1) with all its weights one, over the features of our network."""

    def __init__(self, network: PerceptualNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_hat: Float[Tensor, "B 3 H W"], x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """For each image: squared distance of unit feature vectors, mean over positions, mean over stages."""
        pairs = zip(self.network.features(x_hat), self.network.features(x), strict=True)
        stages = [(_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in pairs]
        return torch.stack(stages).mean(0)


class _Lpips(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            package = importlib.import_module("lpips")
        except ImportError as error:
            raise InputError(
                f"perceptual network {name!r}: the package lpips (with torchvision) cannot be imported ({error}); "
                "install it, or use network=bundled"
            ) from None
        self.network = package.LPIPS(net=name.removeprefix("lpips-"), verbose=False)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return self.network(x_hat, x).flatten()


def _unit(features: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c h w"]:
    features = features.float()
    return features / features.square().sum(1, keepdim=True).add(SMALLEST_NORM).sqrt()
