"""Several codes for each token: residual and grouped quantization of a feature map, in one module for any model.

z (B, K, D) -> G groups of D / G numbers each, and of a group
r_1 = z,  e_q = the codeword of r_q in the q-th codebook,  r_{q+1} = r_q - sg[e_q]
z_q = e_1 + ... + e_Q, the groups side by side;  indices (B, K, Q * G), those of the first quantizer first

Residual: Zeghidour et al. 2021, arXiv 2107.03312, algorithm 1. Groups: Jegou et al. 2011 (product quantization); both:
Yang et al. 2023, arXiv 2305.02765. Another thing is the kind "simvq-residual", which has one code for each token.
"""

from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from channelvq.checks import check_whole_number
from channelvq.errors import InputError
from channelvq.nn.modes import evaluating
from channelvq.quantize.axis import Axis, checked_vectors, shaped_like
from channelvq.quantize.base import Quantizer
from channelvq.quantize.channel_vq import checked_ids, chosen
from channelvq.quantize.draw import asked_draw
from channelvq.quantize.quantized import Quantized, straight_through
from channelvq.quantize.registry import QuantizerConfig


class ResidualChannelVQ(nn.Module):
    """Vector quantization with Q * G codes for each token: `ChannelVQ` Q times over, each for what is left.

    Usage: `z_q, indices, loss = ResidualChannelVQ(512, 16 * 16, num_quantizers=4)(z)` for z of shape (B, C, 16, 16).

    num_quantizers: Q, codebooks one after the other. groups: G, parts of a token with codebooks of their own; it has
    to divide codebook_dim. Everything else, the kinds and their settings too, as of `ChannelVQ`.

    The losses are sums over the quantizers and means over the groups. What reaches z, of them and of the decoder's
    gradient alike, is the mean over the quantizers: else z would get the decoder's gradient Q times.
    """

    def __init__(
        self,
        codebook_size: int | None = None,
        codebook_dim: int | None = None,
        *,
        num_quantizers: int = 1,
        groups: int = 1,
        num_tokens: int | None = None,
        axis: Axis = "channel",
        config: QuantizerConfig | None = None,
        **settings: object,
    ) -> None:
        super().__init__()
        where = "ResidualChannelVQ"
        config, dim, tokens = chosen(where, codebook_size, codebook_dim, num_tokens, axis, config, settings)
        self.num_quantizers = check_whole_number("ResidualChannelVQ: num_quantizers", num_quantizers, 1)
        self.groups = check_whole_number("ResidualChannelVQ: groups", groups, 1)
        if dim % self.groups:
            raise InputError(f"ResidualChannelVQ: {self.groups} groups do not divide codebook_dim, {dim} numbers")
        self.axis: Axis = axis
        self.codebook_dim = dim
        self.quantizers = nn.ModuleList(
            nn.ModuleList(config.build(dim // self.groups, tokens) for _ in range(self.num_quantizers))
            for _ in range(self.groups)
        )

    @property
    def codebook_size(self) -> int:
        """N, of each codebook."""
        return next(iter(self._of_groups()))[0].codebook_size

    def codes(self) -> Float[Tensor, "S N d"]:
        """The tables that indices refer to, as `ChannelVQ.codes` gives one: Q * G of them, with d = D / G."""
        tables = [torch.stack([quantizer.codes() for quantizer in of_group]) for of_group in self._of_groups()]
        return torch.stack(tables, 1).flatten(0, 1)

    def forward(
        self,
        z: Float[Tensor, "B ..."],
        keep: Bool[Tensor, "B K"] | None = None,
        *,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """As of `ChannelVQ`, with indices (B, K, Q * G)."""
        vectors = checked_vectors(z, self.axis, self.codebook_dim, "ResidualChannelVQ").float()
        draw = asked_draw(temperature, generator)
        shared = straight_through(vectors / self.num_quantizers, vectors)
        parts, indices, losses = [], [], {}
        for left, of_group in zip(shared.chunk(self.groups, 2), self._of_groups(), strict=True):
            outs = []
            for quantizer in of_group:
                outs.append(quantizer(left, keep, draw))
                left = left - outs[-1].z_q.detach()
                for name, term in outs[-1].losses.items():
                    losses[name] = losses.get(name, 0.0) + term / self.groups
            parts.append(_sum([out.z_q for out in outs]))
            indices.append(torch.stack([out.indices for out in outs], 2))
        z_q = torch.cat(parts, 2)
        z_q = z_q if keep is None else z_q.masked_fill(~keep[:, :, None], 0.0)
        return Quantized(shaped_like(z_q, z, self.axis), torch.stack(indices, 3).flatten(2), losses)

    def indices_to_codes(self, indices: Int64[Tensor, "B k s"]) -> Float[Tensor, "B k D"]:
        """Tokens by their codes; equal to the bit to what the forward pass used.

        indices: of the first k tokens and of each its first s codes, a multiple of G. Raises InputError for an id that
        is none.
        """
        indices = checked_ids(indices, "(B, k, s)", self.codebook_size)
        count, rest = divmod(indices.shape[2], self.groups)
        if rest or not 1 <= count <= self.num_quantizers:
            raise InputError(
                f"indices_to_codes: a token has {self.groups} codes for each of 1 to {self.num_quantizers} quantizers, "
                f"got shape {tuple(indices.shape)}"
            )
        parts = []
        for ids, of_group in zip(indices.unflatten(2, (count, self.groups)).unbind(3), self._of_groups(), strict=True):
            parts.append(
                _sum([quantizer.indices_to_codes(ids[..., q]) for q, quantizer in enumerate(of_group[:count])])
            )
        return torch.cat(parts, 2)

    def start_from(self, z: Float[Tensor, "B ..."], generator: torch.Generator) -> None:
        """Start the codebooks from feature maps, one after the other, each from what those before it leave."""
        vectors = checked_vectors(z, self.axis, self.codebook_dim, "ResidualChannelVQ").detach().float()
        for left, of_group in zip(vectors.chunk(self.groups, 2), self._of_groups(), strict=True):
            for quantizer in of_group:
                quantizer.start_from_tokens(left, generator)
                with torch.no_grad(), evaluating(quantizer):
                    left = left - quantizer(left).z_q

    def _of_groups(self) -> list[list[Quantizer]]:
        return [cast(list[Quantizer], list(cast(nn.ModuleList, of_group))) for of_group in self.quantizers]


def _sum(codes: list[Float[Tensor, "B K d"]]) -> Float[Tensor, "B K d"]:
    """One after the other, in both directions alike: another order would round differently."""
    total = codes[0]
    for code in codes[1:]:
        total = total + code
    return total
