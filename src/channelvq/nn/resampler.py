"""Feature maps of any size to the home size, which the codebook knows, and back (arXiv 2605.26089, appendix).

maps (B, C, h, w)   -> gather: h0*w0 learnable queries attend to the h*w positions        -> (B, C, h0, w0)
[quantizer]
maps (B, C, h0, w0) -> spread: queries made for the target size attend to h0*w0 positions -> (B, C, h, w)

Each way is bilinear resampling plus an attention that starts at zero. At the home size each way is the identity, to
the bit and after any training: what was made at that size (ids, files, exports) stays as it is without a resampler.
"""

import math

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.config import STRICT
from channelvq.nn.layers import group_norm
from channelvq.nn.modes import without_autocast

Size = tuple[int, int]  # height, width


@dataclass(frozen=True, config=STRICT)
class ResamplerConfig:
    """width: of the attention, over all heads. num_heads: of the attention.

    attention: false leaves bilinear resampling alone, to compare with.
    max_pixels: the most that a picture is worked at, larger ones are reduced first; null: 16 times those of the home
    size.
    """

    width: PositiveInt = 128
    num_heads: PositiveInt = 4
    attention: bool = True
    max_pixels: PositiveInt | None = None

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")


class Resampler(nn.Module):
    """Both ways between maps of any size and those of the home size, side x side."""

    def __init__(self, config: ResamplerConfig, channels: int, side: int) -> None:
        super().__init__()
        self.home: Size = (side, side)
        self.gather_residual = AttentiveResidual(config, channels, side, fixed=True) if config.attention else None
        self.spread_residual = AttentiveResidual(config, channels, side, fixed=False) if config.attention else None

    def gather(self, z: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h0 w0"]:
        """Maps of any size -> the home size."""
        return self._resized(z, self.home, self.gather_residual)

    def spread(self, z: Float[Tensor, "B C h0 w0"], size: Size) -> Float[Tensor, "B C h w"]:
        """Maps of the home size -> `size`, (height, width) in positions."""
        return self._resized(z, size, self.spread_residual)

    def _resized(self, z: Tensor, size: Size, residual: "AttentiveResidual | None") -> Tensor:
        if tuple(z.shape[2:]) == size:  # of the two sizes one is the home size
            return z
        with without_autocast(z):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            # Antialiased: where maps shrink it is the mean of an area, where they grow plain bilinear.
            resized = F.interpolate(z, size, mode="bilinear", antialias=True)
            return resized if residual is None else resized + residual(z, size).to(resized.dtype)


class AttentiveResidual(nn.Module):
    """What attention adds to bilinear resampling: nothing, until it is trained.

    fixed: whether a learnable query stands at each position of the home size, which is then the target.
    """

    def __init__(self, config: ResamplerConfig, channels: int, side: int, *, fixed: bool) -> None:
        super().__init__()
        self.side, self.num_heads, width = side, config.num_heads, config.width
        features = num_place_features(side)
        self.norm = group_norm(channels)
        self.keys, self.values = nn.Linear(channels, width), nn.Linear(channels, width)
        self.key_places = nn.Linear(features, width, bias=False)
        self.query_places = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.queries = nn.Parameter(torch.zeros(side * side, width)) if fixed else None
        # Of each head, the log of how fast weights fall with the squared distance in positions of the home size: from
        # the nearest position alone to a good part of the map.
        self.log_steepness = nn.Parameter(torch.linspace(math.log(4.0), math.log(1 / 16), config.num_heads))
        self.out = nn.Linear(width, channels)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Float[Tensor, "B C h w"], size: Size) -> Float[Tensor, "B C H W"]:
        """(B, C, h, w) -> what is to be added to the maps of `size`."""
        source: Size = (z.shape[2], z.shape[3])
        other = source if self.queries is not None else size  # the size that is not home
        dtype = self.out.weight.dtype
        tokens = self.norm(z.to(dtype)).flatten(2).transpose(1, 2)  # (B, hw, C)
        q_at, k_at = (places(of, z.device).to(dtype) * (self.side / 2) for of in (size, source))
        q_seen, k_seen = (place_features(of, other, self.side, z.device).to(dtype) for of in (size, source))
        q = self.query_places(q_seen)
        q = q if self.queries is None else q + self.queries
        q, k, v = (self._heads(t) for t in (q[None], self.keys(tokens) + self.key_places(k_seen), self.values(tokens)))
        q, k = self._local(q / math.sqrt(q.shape[-1]), q_at, k, k_at)
        mixed = F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v, scale=1.0)
        return self.out(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, size)

    def _heads(self, x: Float[Tensor, "B n width"]) -> Float[Tensor, "B heads n d"]:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _local(
        self, q: Float[Tensor, "1 heads Q d"], q_at: Float[Tensor, "Q 2"],
        k: Float[Tensor, "B heads K d"], k_at: Float[Tensor, "K 2"],
    ) -> tuple[Float[Tensor, "1 heads Q d3"], Float[Tensor, "B heads K d3"]]:  # fmt: skip
        """Queries and keys whose products are lower by steepness x squared distance, up to what softmax removes.

        -s |a - b|^2 = 2s a.b - s |b|^2 - s |a|^2, and the last is the same for all keys of a query: three numbers more
        a head instead of a (heads, Q, K) bias.
        """
        steepness = self.log_steepness.exp()[:, None, None]
        toward = torch.cat([2 * steepness * q_at, -steepness.expand(-1, len(q_at), 1)], dim=-1)
        place = torch.cat([k_at, k_at.square().sum(1, keepdim=True)], dim=1)
        place = place.expand(len(k), self.num_heads, -1, -1)
        return torch.cat([q, toward[None]], dim=-1), torch.cat([k, place], dim=-1)


def places(size: Size, device: torch.device) -> Float[Tensor, "hw 2"]:
    """The centres of the positions of a map as (y, x), each in (-1, 1) over the picture."""
    y, x = (2 * (torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n - 1 for n in size)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)


def num_place_features(side: int) -> int:
    """How many numbers `place_features` gives of a position."""
    return 4 * _octaves(side) + 4


def place_features(size: Size, other: Size, side: int, device: torch.device) -> Float[Tensor, "hw F"]:
    """2-D Fourier features of the positions of a map of `size`, and the scale between the home size and `other`.

    Waves of 1, 2, 4, ... cycles over the picture up to one a position of the home size, so that where between home
    positions a place is can be read. Coordinates stay in (-1, 1) at every size; height and width each have their log
    ratio to the home side, and so their aspect: what was not trained at is between or beyond numbers that were.
    """
    at = places(size, device)
    cycles = 2.0 ** torch.arange(_octaves(side), device=device)
    phases = (math.pi * at[:, :, None] * cycles).flatten(1)
    scale = torch.tensor([math.log(n / side) for n in other], device=device)
    return torch.cat([phases.sin(), phases.cos(), at, scale.expand(len(at), 2)], dim=1)


def _octaves(side: int) -> int:
    return math.ceil(math.log2(side)) + 1
