"""SimVQ: a frozen basis under one learned linear layer, so that a step for a few codes moves all of them.

e_n = W c_n         c: (N, D), frozen; W: (D, D), learned
z (B, K, D) -> nearest codeword e -> straight-through
loss = ||sg[z] - W c||^2 + beta ||z - sg[W c]||^2     (Zhu et al. 2024, arXiv 2411.02038, eq. 5)
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
class SimVQConfig:
    """beta, codebook_weight: see `PlainConfig`.

    start: "data" takes the basis from the first vectors seen (k-means); "normal" is the paper's, drawn from N(0, 1/D)
    with `seed`. W starts as the identity in both cases.
    """

    kind: Literal["simvq"] = "simvq"
    codebook_size: CodebookSize = 4096
    beta: Annotated[float, Field(ge=0)] = 0.25
    codebook_weight: Annotated[float, Field(ge=0)] = 1.0
    start: Literal["data", "normal"] = "data"
    kmeans_iterations: NonNegativeInt = 10
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def build(self, dim: int, num_tokens: int | None = None) -> "SimVQCodebook":
        """The quantizer, for tokens of `dim` numbers."""
        return SimVQCodebook(self, dim)


class ProjectedCodebook(DrawingQuantizer):
    """A frozen basis (N, D) under a learned linear map. The base of SimVQ and VQGAN-LC."""

    basis: Tensor

    def __init__(
        self, basis: Float[Tensor, "N D"], *, bias: bool, codebook_weight: float, beta: float, started: bool
    ) -> None:
        size, dim = basis.shape
        super().__init__(size, dim, started=started)
        self.register_buffer("basis", basis)
        self.weight = nn.Parameter(torch.eye(dim))  # W
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.codebook_weight, self.beta = codebook_weight, beta

    def codes(self) -> Float[Tensor, "N D"]:
        """The table that indices refer to."""
        # Under autocast the same table as in the forward pass, to the bit.
        with torch.autocast(self.basis.device.type, enabled=False):
            return F.linear(self.basis, self.weight, self.bias)

    def _quantize(
        self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None, draw: Draw | None = None
    ) -> Quantized:
        with torch.no_grad():
            table = self.codes()
            indices = self.codes_of(z, table, draw)
            codes = F.embedding(indices, table)
        # The gradient of W through the chosen rows alone costs M and not N products. Their numbers are the table's:
        # a product of another shape rounds differently.
        chosen = straight_through(F.linear(F.embedding(indices, self.basis), self.weight, self.bias), codes)
        losses = vq_losses(z, chosen, keep, codebook=self.codebook_weight, beta=self.beta)
        return Quantized(straight_through(z, codes), indices, losses)


class SimVQCodebook(ProjectedCodebook):
    """N codewords W c_n."""

    def __init__(self, config: SimVQConfig, dim: int) -> None:
        generator = torch.Generator("cpu").manual_seed(config.seed)
        basis = torch.randn(config.codebook_size, dim, device="cpu", generator=generator) * dim**-0.5
        super().__init__(
            basis,
            bias=False,
            codebook_weight=config.codebook_weight,
            beta=config.beta,
            started=config.start == "normal",
        )
        self.config = config

    def _place(self, vectors: Float[Tensor, "M D"], generator: torch.Generator) -> None:
        self.basis.copy_(kmeans(vectors, self.codebook_size, self.config.kmeans_iterations, generator))
        nn.init.eye_(self.weight)
