"""VQGAN-LC: a frozen codebook of features of the data under a learned projector.

e_n = P(c_n) = W c_n + b      c: (N, D), k-means centres of features of the training images, frozen; W, b: learned
z (B, K, D) -> nearest codeword e -> straight-through
loss = ||sg[z] - P(c)||^2 + beta ||z - sg[P(c)]||^2     (Zhu et al. 2024, arXiv 2406.11837, section 3.2)

The paper's features are those of a pretrained vision encoder. Ours are the encoder's own at the start, on the axis of
the tokens; others can be given to `start_from`. The projector starts as the identity. So it differs from SimVQ with
`start: data` by the bias alone: both papers arrive at one form, from the features or from the linear layer.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from channelvq.config import STRICT, CodebookSize
from channelvq.quantize.kmeans import kmeans
from channelvq.quantize.simvq import ProjectedCodebook


@dataclass(frozen=True, config=STRICT)
class LCConfig:
    """beta, codebook_weight, kmeans_iterations: see `PlainConfig`. It always starts from data."""

    kind: Literal["lc"] = "lc"
    codebook_size: CodebookSize = 4096
    beta: Annotated[float, Field(ge=0)] = 0.25
    codebook_weight: Annotated[float, Field(ge=0)] = 1.0
    kmeans_iterations: NonNegativeInt = 10

    def build(self, dim: int, num_tokens: int | None = None) -> "LCCodebook":
        """The quantizer, for tokens of `dim` numbers."""
        return LCCodebook(self, dim)


class LCCodebook(ProjectedCodebook):
    """N codewords P(c_n)."""

    def __init__(self, config: LCConfig, dim: int) -> None:
        basis = torch.zeros(config.codebook_size, dim)
        super().__init__(basis, bias=True, codebook_weight=config.codebook_weight, beta=config.beta, started=False)
        self.config = config

    def _place(self, vectors: Float[Tensor, "M D"], generator: torch.Generator) -> None:
        self.basis.copy_(kmeans(vectors, self.codebook_size, self.config.kmeans_iterations, generator))
        nn.init.eye_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
