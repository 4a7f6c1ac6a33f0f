"""A linear image coder with residual networks on top: at step 0 it is the linear coder, to the last digit.

image x (B, 3, H, W)
-> x + U-Net(x)                                                   what the linear part is to see; zero at first
-> basis (R, 3HW) (x - mean)            R coefficients, float32
-> placed at `slots` of the maps    z   (B, C, h, w)              which token has which coefficient: train/start.py
   [quantizer]
-> coefficients from `slots` -> basis^T -> + mean                 float32
-> y + U-Net(y)                         image (B, 3, H, W)        zero at first

The maps are a place to put numbers: on the channel axis those of channel k are its coefficients, not a picture. Unused
numbers are zero.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.config import STRICT
from channelvq.errors import InputError
from channelvq.nn.modes import without_autocast
from channelvq.nn.networks import Decoder, Encoder
from channelvq.nn.separable import SeparableMap, fill_up
from channelvq.nn.unet import UNet, UNetConfig


@dataclass(frozen=True, config=STRICT)
class LinearConfig:
    """downsampling: f, the ratio of the image's side to that of the maps. components: R, coefficients in all.

    form: "full", a basis of whole images, up to about 96 px; "separable", a transform of pixel blocks of side `block`
    to `features` numbers each and then one of each feature's grid (nn/separable.py), for any size. encoder, decoder:
    the residual networks; None for none. start_images: how many images the linear part is fitted to.
    """

    kind: Literal["linear"] = "linear"
    downsampling: PositiveInt = 8
    components: PositiveInt = 768
    form: Literal["full", "separable"] = "full"
    block: PositiveInt = 8
    features: PositiveInt = 64
    encoder: UNetConfig | None = None
    decoder: UNetConfig | None = None
    start_images: PositiveInt = 8192

    def __post_init__(self) -> None:
        for name, network in (("encoder", self.encoder), ("decoder", self.decoder)):
            if network is not None and self.downsampling % network.downsampling:
                raise ValueError(
                    f"downsampling {self.downsampling} must be a multiple of the {name}'s, {network.downsampling} "
                    f"(stem {network.stem}, multipliers {network.multipliers})"
                )
        if self.form == "separable" and self.downsampling % self.block:
            raise ValueError(f"downsampling {self.downsampling} must be a multiple of block {self.block}")

    @property
    def downsampling_reason(self) -> str:
        """The settings that it comes from."""
        return f"downsampling {self.downsampling}"

    def build_encoder(self, latent_channels: int, image_size: int) -> "LinearEncoder":
        """With a linear part of zeros, until it is fitted to data (train/start.py)."""
        return LinearEncoder(self, latent_channels, image_size)

    def build_decoder(self, latent_channels: int, image_size: int) -> "LinearDecoder":
        """Of the same linear part."""
        return LinearDecoder(self, latent_channels, image_size)


class LinearMap(nn.Module):
    """The basis, its mean and the places of the coefficients: fitted to data, fixed in training."""

    mean: Tensor
    basis: Tensor
    slots: Tensor

    def __init__(self, components: int, latent_shape: tuple[int, int, int], image_size: int) -> None:
        super().__init__()
        self.latent_shape, self.image_shape = latent_shape, (3, image_size, image_size)
        pixels = 3 * image_size**2
        count = min(components, pixels, math.prod(latent_shape))
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(count, pixels))
        self.register_buffer("slots", torch.arange(count))

    @property
    def placed(self) -> bool:
        """Whether it was fitted to data, or loaded."""
        return bool(self.basis.any())

    @torch.no_grad()
    def place(self, mean: Float[Tensor, " P"], basis: Float[Tensor, "n P"], slots: Tensor) -> None:
        """Take a basis of n <= R rows and the slots of its coefficients; rows beyond them are zero, at free slots."""
        self.mean.copy_(mean)
        self.basis.zero_()
        self.basis[: len(basis)] = basis
        self.slots.copy_(fill_up(slots, len(self.slots), math.prod(self.latent_shape)))

    def analyse(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Images -> coefficients in their places."""
        with without_autocast(x):
            # In bfloat16 the coefficients would lose what the networks are there to win.
            coefficients = F.linear(x.flatten(1).to(self.basis.dtype) - self.mean, self.basis)
            maps = coefficients.new_zeros(len(x), math.prod(self.latent_shape))
            return maps.index_copy(1, self.slots, coefficients).unflatten(1, self.latent_shape)

    def synthesise(self, z: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Coefficients in their places -> images."""
        with without_autocast(z):
            coefficients = z.flatten(1).to(self.basis.dtype)[:, self.slots]
            return (coefficients @ self.basis + self.mean).unflatten(1, self.image_shape)


def build_map(config: LinearConfig, latent_channels: int, image_size: int) -> LinearMap | SeparableMap:
    """The linear part of a config."""
    side = image_size // config.downsampling
    shape = (latent_channels, side, side)
    if config.form == "full":
        return LinearMap(config.components, shape, image_size)
    return SeparableMap(config.components, shape, image_size, block_side=config.block, features=config.features)


class LinearEncoder(Encoder):
    """(B, 3, H, W) in [-1, 1] -> (B, c, H/f, W/f)."""

    def __init__(self, config: LinearConfig, latent_channels: int, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.linear = build_map(config, latent_channels, image_size)
        self.residual = None if config.encoder is None else UNet(config.encoder, image_size)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Images in [-1, 1] -> feature maps."""
        return self.linear.analyse(x if self.residual is None else x + self.residual(x).to(x.dtype))


class LinearDecoder(Decoder):
    """(B, c, h, w) -> (B, 3, h*f, w*f)."""

    def __init__(self, config: LinearConfig, latent_channels: int, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.linear = build_map(config, latent_channels, image_size)
        self.residual = None if config.decoder is None else UNet(config.decoder, image_size)

    @property
    def last_weight(self) -> Tensor:
        """Of the convolution that makes the pixels: where losses on the image are balanced."""
        if self.residual is None:
            raise InputError(
                "model.network.decoder: a linear decoder without a network has no weights to balance losses by; set "
                "objective.adversarial.adaptive=false, or give it a network"
            )
        return self.residual.out.weight

    def forward(self, z: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Feature maps -> images, not clamped."""
        y = self.linear.synthesise(z)
        return y if self.residual is None else y + self.residual(y).to(y.dtype)
