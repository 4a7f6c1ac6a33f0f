"""The plain codebook of the paper: codewords by gradient, commitment on the encoder's side.

z (B, K, D) -> nearest codeword e -> straight-through
loss = ||sg[z] - e||^2 + beta ||z - sg[e]||^2     (van den Oord et al. 2017, eq. 3; paper: beta = 0.25)
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.config import STRICT, CodebookSize
from channelvq.quantize.base import DrawingQuantizer
from channelvq.quantize.draw import Draw
from channelvq.quantize.kmeans import kmeans
from channelvq.quantize.quantized import Quantized, straight_through, vq_losses


@dataclass(frozen=True, config=STRICT)
class PlainConfig:
    """beta: weight of the commitment term. codebook_weight: weight of the codebook term.

    start: "data" takes the codewords from the first vectors seen (k-means), "uniform" draws them from +-1/N, the usual
    start of the VQGAN family, under which a small run collapses (docs/decisions/0003-what-keeps-the-codebook-alive.md).
    distance: "cosine" compares directions alone, with tokens and codewords brought to length 1 (Yu et al. 2021, arXiv
    2110.04627, section 3.2); None is Euclidean, of the numbers as they are.
    """

    kind: Literal["plain"] = "plain"
    codebook_size: CodebookSize = 4096
    beta: Annotated[float, Field(ge=0)] = 0.25
    codebook_weight: Annotated[float, Field(ge=0)] = 1.0
    start: Literal["data", "uniform"] = "data"
    kmeans_iterations: NonNegativeInt = 10
    distance: Literal["cosine"] | None = None

    def build(self, dim: int, num_tokens: int | None = None) -> "PlainCodebook":
        """The quantizer, for tokens of `dim` numbers."""
        return PlainCodebook(self, dim)


class PlainCodebook(DrawingQuantizer):
    """N codewords of D numbers, trained by gradient."""

    def __init__(self, config: PlainConfig, dim: int) -> None:
        super().__init__(config.codebook_size, dim, started=config.start == "uniform", unit=config.distance is not None)
        self.config = config
        size = config.codebook_size
        self.weight = nn.Parameter(torch.empty(size, dim).uniform_(-1 / size, 1 / size))

    def codes(self) -> Float[Tensor, "N D"]:
        """The table that indices refer to."""
        return self.compared(self.weight)

    def _place(self, vectors: Float[Tensor, "M D"], generator: torch.Generator) -> None:
        self.weight.copy_(kmeans(vectors, self.codebook_size, self.config.kmeans_iterations, generator))

    def _quantize(
        self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None, draw: Draw | None = None
    ) -> Quantized:
        table = self.codes()
        indices = self.codes_of(z, table, draw)
        codes = F.embedding(indices, table)
        losses = vq_losses(z, codes, keep, codebook=self.config.codebook_weight, beta=self.config.beta)
        return Quantized(straight_through(z, codes), indices, losses)
