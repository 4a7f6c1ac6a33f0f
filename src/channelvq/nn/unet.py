"""A residual network in image space that starts as nothing and knows where it is: a U-Net with position tables.

image (B, 3, H, W) -> unshuffle by `stem` -> conv + positions -> [blocks, halve, + positions]* -> blocks, attention
-> [double, join with the same level, blocks]* -> conv, zero at first -> shuffle by `stem` -> (B, 3, H, W)

(Ronneberger et al. 2015, arXiv 1505.04597.) A convolution alone does not know its place; a pattern over the whole
image, which is what a channel's codeword stands for, can only be read or mended by something that does.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.config import STRICT
from channelvq.nn.layers import AttentionBlock, Downsample, ResBlock, group_norm


@dataclass(frozen=True, config=STRICT)
class UNetConfig:
    """Widths are base_channels times each multiplier; every multiplier after the first halves the resolution.

    stem: side of the pixel blocks folded into channels before the first convolution. num_blocks: residual blocks a
    level, on the way down and on the way up. attention: around the blocks at the lowest resolution.
    """

    base_channels: PositiveInt = 64
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2)
    num_blocks: PositiveInt = 2
    attention: bool = True
    stem: PositiveInt = 4

    @property
    def downsampling(self) -> int:
        """The ratio of the image's side to that of the lowest resolution."""
        return self.stem * 2 ** (len(self.multipliers) - 1)


class UNet(nn.Module):
    """(B, 3, H, W) -> (B, 3, H, W), for one size of images; zero everywhere before the first step of training."""

    def __init__(self, config: UNetConfig, image_size: int) -> None:
        super().__init__()
        widths, blocks = [config.base_channels * m for m in config.multipliers], config.num_blocks
        sides = [image_size // (config.stem * 2**level) for level in range(len(widths))]
        self.fold, self.unfold = nn.PixelUnshuffle(config.stem), nn.PixelShuffle(config.stem)
        self.stem = nn.Conv2d(3 * config.stem**2, widths[0], 3, padding=1)
        self.shrink = nn.ModuleList(Downsample(width) for width in widths[:-1])
        # What a level is given: the stem's width, or that of the level above it.
        given = [widths[0], *widths[:-1]]
        self.positions = nn.ParameterList(
            torch.zeros(width, side, side) for width, side in zip(given, sides, strict=True)
        )
        self.down = nn.ModuleList(_blocks(a, b, blocks) for a, b in zip(given[:-1], widths[:-1], strict=True))
        width = widths[-1]
        around = [AttentionBlock(width)] if config.attention else []
        last = [AttentionBlock(width)] if config.attention else []
        self.middle = nn.Sequential(ResBlock(given[-1], width), *around, *_blocks(width, width, blocks), *last)
        # To the width of the level above before doubling, where the convolution is four times as cheap as after it.
        self.enlarge = nn.ModuleList(
            nn.Sequential(nn.Conv2d(below, here, 3, padding=1), nn.Upsample(scale_factor=2))
            for below, here in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.up = nn.ModuleList(_blocks(2 * here, here, blocks) for here in widths[-2::-1])
        self.norm = group_norm(widths[0])
        self.out = nn.Conv2d(widths[0], 3 * config.stem**2, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """What is to be added to the images."""
        x = self.stem(self.fold(x))
        beside = []
        for level, blocks in enumerate(self.down):
            x = blocks(x + self.positions[level])
            beside.append(x)
            x = self.shrink[level](x)
        x = self.middle(x + self.positions[-1])
        for enlarge, blocks in zip(self.enlarge, self.up, strict=True):
            x = blocks(torch.cat([enlarge(x), beside.pop()], dim=1))
        return self.unfold(self.out(F.silu(self.norm(x))))


def _blocks(given: int, width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(given if i == 0 else width, width) for i in range(count)))
