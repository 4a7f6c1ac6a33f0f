"""The plain codebook of the paper: codewords by gradient, commitment on the encoder's side.

z (B, K, D) -> nearest codeword e -> straight-through
loss = ||sg[z] - e||^2 + beta ||z - sg[e]||^2     (van den Oord et al. 2017, eq. 3; paper: beta = 0.25)
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.config import STRICT
from channelvq.errors import InputError
from channelvq.quantize.kmeans import kmeans
from channelvq.quantize.nearest import nearest_codeword
from channelvq.quantize.quantized import Quantized, mean_over_kept, straight_through


@dataclass(frozen=True, config=STRICT)
class PlainConfig:
    """beta: weight of the commitment term. codebook_weight: weight of the codebook term.

    start: "data" takes the codewords from the first vectors seen (k-means), "uniform" draws them from +-1/N, the usual
    start of the VQGAN family, under which a small run collapses (docs/decisions/0003-what-keeps-the-codebook-alive.md).
    """

    kind: Literal["plain"] = "plain"
    codebook_size: PositiveInt = 4096
    beta: Annotated[float, Field(ge=0)] = 0.25
    codebook_weight: Annotated[float, Field(ge=0)] = 1.0
    start: Literal["data", "uniform"] = "data"
    kmeans_iterations: NonNegativeInt = 10


class PlainCodebook(nn.Module):
    """N codewords of D numbers, trained by gradient."""

    started: Tensor

    def __init__(self, config: PlainConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        size = config.codebook_size
        self.weight = nn.Parameter(torch.empty(size, dim).uniform_(-1 / size, 1 / size))
        # Part of the state: a loaded codebook must never be started again.
        self.register_buffer("started", torch.tensor(config.start == "uniform"))

    @property
    def codebook_size(self) -> int:
        """N."""
        return self.config.codebook_size

    def codes(self) -> Float[Tensor, "N D"]:
        """The table that indices refer to."""
        return self.weight

    def indices_to_codes(self, indices: Int64[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        """Codewords by index; equal to the bit to what the forward pass used."""
        return F.embedding(indices, self.weight)

    @torch.no_grad()
    def start_from(self, vectors: Float[Tensor, "M D"], generator: torch.Generator) -> None:
        """Set the codewords to the k-means centres of `vectors`: on rank 0, then broadcast, so that ranks agree."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or torch.distributed.get_rank() == 0:
            self.weight.copy_(kmeans(vectors, self.codebook_size, self.config.kmeans_iterations, generator))
        if distributed:
            torch.distributed.broadcast(self.weight, src=0)
        self.started.fill_(True)

    def forward(self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None = None) -> Quantized:
        """Quantize (B, K, D) in float32; `keep` marks the tokens that the loss counts.

        A codebook that starts from the data does so on its first training batch if `start_from` was not called before.
        """
        z = z.float()
        if z.ndim != 3 or z.shape[2] != self.weight.shape[1]:
            raise InputError(f"quantizer: expected (B, K, {self.weight.shape[1]}), got {tuple(z.shape)}")
        if self.training and not self.started:
            self.start_from(z.flatten(0, 1), torch.Generator().manual_seed(0))
        indices = nearest_codeword(z.flatten(0, 1), self.weight).view(z.shape[:2])
        codes = self.indices_to_codes(indices)
        losses = {
            "codebook": self.config.codebook_weight * mean_over_kept((z.detach() - codes).square().mean(2), keep),
            "commitment": self.config.beta * mean_over_kept((z - codes.detach()).square().mean(2), keep),
        }
        return Quantized(straight_through(z, codes), indices, losses)
