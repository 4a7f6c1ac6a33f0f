"""The convolutional encoder and decoder of the VQGAN family (Esser et al. 2021, arXiv 2012.09841), with a pixel stem.

image (B, 3, H, W) -> unshuffle by `stem` -> conv -> [blocks, halve]* -> blocks, attention -> conv -> (B, c, H/f, W/f)
f = stem * 2^(number of halvings)
"""

from itertools import chain
from typing import Annotated, Literal, cast

from jaxtyping import Float
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from channelvq.config import STRICT
from channelvq.nn.layers import AttentionBlock, Downsample, ResBlock, Upsample, group_norm, levels
from channelvq.nn.networks import Decoder, Encoder


@dataclass(frozen=True, config=STRICT)
class ConvConfig:
    """Widths are base_channels times each multiplier; every multiplier after the first halves the resolution.

    stem: side of the pixel blocks folded into channels before the first convolution (1: none, the paper's VQGAN;
    4 trains on two cores). attention: at the lowest resolution.
    """

    kind: Literal["conv"] = "conv"
    base_channels: PositiveInt = 128
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 1, 2, 2, 4)
    num_blocks: PositiveInt = 2
    attention: bool = True
    stem: PositiveInt = 1

    @property
    def downsampling(self) -> int:
        """f, the ratio of the image's side to the latent map's."""
        return self.stem * 2 ** (len(self.multipliers) - 1)

    @property
    def downsampling_reason(self) -> str:
        """The settings that it comes from."""
        return f"stem {self.stem}, multipliers {self.multipliers}"

    @property
    def any_size(self) -> bool:
        """Whether one network takes images of every size that is a multiple of f."""
        return True

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, highest first."""
        return tuple(self.base_channels * m for m in self.multipliers)

    def build_encoder(self, latent_channels: int, image_size: int) -> "ConvEncoder":
        """For images of any size that is a multiple of f."""
        return ConvEncoder(self, latent_channels)

    def build_decoder(self, latent_channels: int, image_size: int, encoder: Encoder) -> "ConvDecoder":
        """The mirror of the encoder."""
        return ConvDecoder(self, latent_channels)


def _lowest(width: int, attention: bool) -> list[nn.Module]:
    middle: list[nn.Module] = [AttentionBlock(width)] if attention else []
    return [ResBlock(width, width), *middle, ResBlock(width, width)]


class ConvEncoder(Encoder):
    """(B, 3, H, W) in [-1, 1] -> (B, c, H/f, W/f)."""

    def __init__(self, config: ConvConfig, latent_channels: int) -> None:
        super().__init__()
        widths, last = config.widths, config.widths[-1]
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(config.stem),
            nn.Conv2d(3 * config.stem**2, widths[0], 3, padding=1),
            *chain(*levels(widths, config.num_blocks, Downsample)),
            *_lowest(last, config.attention),
            group_norm(last),
            nn.SiLU(),
            nn.Conv2d(last, latent_channels, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Images in [-1, 1] -> feature maps."""
        return self.layers(x)


class ConvDecoder(Decoder):
    """(B, c, h, w) -> (B, 3, h*f, w*f); the mirror of the encoder with one more block a level, as in VQGAN."""

    def __init__(self, config: ConvConfig, latent_channels: int) -> None:
        super().__init__()
        widths, last = config.widths[::-1], config.widths[0]
        self.layers = nn.Sequential(
            nn.Conv2d(latent_channels, widths[0], 3, padding=1),
            *_lowest(widths[0], config.attention),
            *chain(*levels(widths, config.num_blocks + 1, Upsample)),
            group_norm(last),
            nn.SiLU(),
            nn.Conv2d(last, 3 * config.stem**2, 3, padding=1),
            nn.PixelShuffle(config.stem),
        )

    @property
    def last_weight(self) -> Tensor:
        """Of the convolution that makes the pixels: where losses on the image are balanced."""
        return cast(nn.Conv2d, self.layers[-2]).weight

    def forward(self, z: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Feature maps -> images, not clamped."""
        return self.layers(z)
