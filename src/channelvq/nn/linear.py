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
from jaxtyping import Float, Int64
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from channelvq.config import STRICT
from channelvq.errors import InputError
from channelvq.nn.modes import without_autocast
from channelvq.nn.networks import Decoder, Encoder
from channelvq.nn.placement import PlacedTransform
from channelvq.nn.separable import SeparableMap
from channelvq.nn.unet import UNet, UNetConfig


@dataclass(frozen=True, config=STRICT)
class LinearConfig:
    """downsampling: f, the ratio of the image's side to that of the maps. components: R, coefficients in all.

    slots: how many numbers of the maps hold a coefficient; None: one for each. More of them where tokens share
    coefficients, which a quantizer that passes errors on (simvq-residual) makes use of.
    form: "full", a basis of whole images, up to about 96 px; "separable", a transform of pixel blocks of side `block`
    to `features` numbers each and then one of each feature's grid (nn/separable.py), for any size. block: side of its
    pixel blocks. features: numbers of each block. encoder, decoder: the residual networks; None for none. start_images:
    how many images the linear part is fitted to.
    """

    kind: Literal["linear"] = "linear"
    downsampling: PositiveInt = 8
    components: PositiveInt = 768
    slots: PositiveInt | None = None
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

    def build_decoder(self, latent_channels: int, image_size: int, encoder: Encoder) -> "LinearDecoder":
        """On the encoder's linear part."""
        assert isinstance(encoder, LinearEncoder)
        return LinearDecoder(self, encoder.linear, image_size)


class LinearMap(PlacedTransform):
    """The basis, its mean and the places of the coefficients: fitted to data, fixed in training."""

    basis: Tensor

    def __init__(self, components: int, slots: int, latent_shape: tuple[int, int, int], image_size: int) -> None:
        count = min(components, 3 * image_size**2, math.prod(latent_shape))
        super().__init__(count, slots, latent_shape, (3, image_size, image_size))
        self.register_buffer("basis", torch.zeros(count, 3 * image_size**2))

    @torch.no_grad()
    def place(
        self, mean: Float[Tensor, " P"], basis: Float[Tensor, "m P"], chosen: Tensor, slots: Int64[Tensor, " n"]
    ) -> None:
        """Take a basis of m <= R rows, and which of its coefficients stand where; rows beyond it are zero."""
        self.mean.copy_(mean)
        self.basis.zero_()
        self.basis[: len(basis)] = basis
        self.place_at(chosen, slots)

    def analyse(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Images -> coefficients in their places."""
        with without_autocast(x):
            # In bfloat16 the coefficients would lose what the networks are there to win.
            return self.to_maps(F.linear(x.flatten(1).to(self.basis.dtype) - self.mean, self.basis))

    def synthesise(self, z: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Coefficients in their places -> images."""
        with without_autocast(z):
            return (self.from_maps(z) @ self.basis + self.mean).unflatten(1, self.image_shape)


def _build_map(config: LinearConfig, latent_channels: int, image_size: int) -> LinearMap | SeparableMap:
    side = image_size // config.downsampling
    shape = (latent_channels, side, side)
    slots = config.slots or config.components
    if config.form == "full":
        return LinearMap(config.components, slots, shape, image_size)
    return SeparableMap(slots, shape, image_size, block_side=config.block, features=config.features)


class LinearEncoder(Encoder):
    """(B, 3, H, W) in [-1, 1] -> (B, c, H/f, W/f)."""

    def __init__(self, config: LinearConfig, latent_channels: int, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.linear = _build_map(config, latent_channels, image_size)
        self.residual = None if config.encoder is None else UNet(config.encoder, image_size)

    def first_maps(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Those of the linear part, which are all until the network has learned something."""
        return self.linear.analyse(x)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Images in [-1, 1] -> feature maps."""
        return self.linear.analyse(x if self.residual is None else x + self.residual(x).to(x.dtype))


class LinearDecoder(Decoder):
    """(B, c, h, w) -> (B, 3, h*f, w*f), through the linear part that its encoder holds."""

    def __init__(self, config: LinearConfig, linear: LinearMap | SeparableMap, image_size: int) -> None:
        super().__init__()
        self.config = config
        # In a tuple torch does not see it: its numbers are stored and moved once, with the encoder.
        self._linear = (linear,)
        self.residual = None if config.decoder is None else UNet(config.decoder, image_size)

    @property
    def linear(self) -> LinearMap | SeparableMap:
        """The encoder's."""
        return self._linear[0]

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
