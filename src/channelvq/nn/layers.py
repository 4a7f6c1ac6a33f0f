"""Building blocks of the convolutional networks.

Every residual branch starts at zero (Zhang et al. 2019, arXiv 1901.09321), so that the untrained encoder is close to a
linear map of the pixels: the codebook that is started from its maps is then a good one from the first step.
No BatchNorm anywhere: the output for an image must not depend on the other images of its batch.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with the most groups, up to 32, that keep at least 4 channels in each."""
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and (channels // g >= 4 or g == 1))
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _start_at_zero(conv: nn.Conv2d) -> None:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on the skip when the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        _start_at_zero(self.conv2)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B out h w"]:
        """(B, in, h, w) -> (B, out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over positions with a residual connection, in heads of about `head_dim` channels."""

    def __init__(self, channels: int, head_dim: int = 64) -> None:
        super().__init__()
        most = max(1, channels // head_dim)
        self.num_heads = next(heads for heads in range(most, 0, -1) if channels % heads == 0)
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        _start_at_zero(self.out)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """(B, C, h, w) -> (B, C, h, w)."""
        qkv = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.num_heads, -1)).transpose(3, 4)
        q, k, v = qkv.unbind(1)  # each (B, heads, h*w, head_dim)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(2, 3).reshape(x.shape))


class Downsample(nn.Module):
    """Halves height and width by a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h2 w2"]:
        """(B, C, h, w) -> (B, C, h/2, w/2)."""
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles height and width by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h2 w2"]:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def levels(widths: Sequence[int], num_blocks: int, resize: type[Downsample | Upsample]) -> list[list[nn.Module]]:
    """The layers of each resolution: blocks to its width, after the first resolution begun by `resize`."""
    layers: list[list[nn.Module]] = []
    previous = widths[0]
    for width in widths:
        level: list[nn.Module] = [resize(previous)] if layers else []
        for _ in range(num_blocks):
            level.append(ResBlock(previous, width))
            previous = width
        layers.append(level)
    return layers
