"""Lookup-free quantization: log2 N numbers, each reduced to its sign.

u = project_in(z);  v_i = sign(u_i), straight-through;  index = sum_i [u_i > 0] 2^i
p(c | u) = softmax(2 u.c / tau) over all N codes c in {-1, 1}^d
loss = entropy (E[H(p)] - gamma H(E[p])) + beta ||u - sg[v]||^2     (Yu et al. 2023, arXiv 2310.05737, eq. 3 to 5)
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from jaxtyping import Bool, Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from channelvq.config import STRICT, ScalarCodebookSize
from channelvq.quantize.base import GlobalBatch
from channelvq.quantize.entropy import entropies, survey_entropies
from channelvq.quantize.quantized import Quantized, mean_over_kept, straight_through
from channelvq.quantize.scalar import ScalarCodebook, peers
from channelvq.quantize.soft import SoftCodes, soft_codes


@dataclass(frozen=True, config=STRICT)
class LFQConfig:
    """codebook_size: a power of two. beta: weight of the commitment of u to its signs.

    entropy_weight: of E[H(p)] - gamma H(E[p]), the second with `diversity_gamma`. temperature: tau of the softmax.
    """

    kind: Literal["lfq"] = "lfq"
    codebook_size: ScalarCodebookSize = 4096
    beta: Annotated[float, Field(ge=0)] = 0.25
    entropy_weight: Annotated[float, Field(ge=0)] = 0.1
    diversity_gamma: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0

    def __post_init__(self) -> None:
        if self.codebook_size < 2 or self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size must be a power of two of at least 2, got {self.codebook_size}")

    def build(self, dim: int, num_tokens: int | None = None) -> "LFQCodebook":
        """The quantizer, for tokens of `dim` numbers."""
        return LFQCodebook(self, dim)


class LFQCodebook(ScalarCodebook):
    """N = 2^d codes, the corners of a cube projected to D numbers.

    The entropies are ours: the library (1.32) divides the batch's by the number of ranks without having added it up.
    """

    def __init__(self, config: LFQConfig, dim: int) -> None:
        size = config.codebook_size
        super().__init__(lambda: peers().LFQ(codebook_size=size), size, size.bit_length() - 1, dim, scale=1.0)
        self.config = config

    def _round(self, u: Float[Tensor, "B K d"]) -> tuple[Float[Tensor, "B K d"], Int64[Tensor, "B K"]]:
        indices = self.library.eval()(u.detach()).indices.long()
        return straight_through(u, self.grid[indices]), indices

    @property
    def over_batch(self) -> bool:
        """The second entropy is that of the global batch's mean."""
        return self.config.entropy_weight > 0

    def _survey(
        self, vectors: Sequence[Float[Tensor, "b K D"]], keep: Sequence[Bool[Tensor, "b K"] | None], parts: int
    ) -> GlobalBatch:
        softs = (self._soft(self._project_in(z), kept) for z, kept in zip(vectors, keep, strict=True))
        return survey_entropies(softs, parts, None)[0]

    def _soft(self, u: Float[Tensor, "B K d"], keep: Bool[Tensor, "B K"] | None) -> SoftCodes:
        grid = self.grid.float()
        return soft_codes(u, grid, grid, self.config.temperature / 2, keep)

    def _quantize(self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None) -> Quantized:
        config, u = self.config, self._project_in(z)
        points, indices = self._round(u)
        losses = {"commitment": config.beta * mean_over_kept((u - points.detach()).square().mean(2), keep)}
        if self.training and config.entropy_weight:
            of_tokens, of_batch = entropies(self._soft(u, keep), self.global_batch)
            losses["entropy"] = config.entropy_weight * (of_tokens - config.diversity_gamma * of_batch)
        return Quantized(self._project_out(points), indices, losses)
