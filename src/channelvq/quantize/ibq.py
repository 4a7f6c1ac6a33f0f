"""Index backpropagation: the softmax over all codes takes the gradient of the index, so that every code moves.

p = softmax(logits(z, e_1..e_N))               Ind = onehot(argmax p) - sg[p] + p
z_q = Ind^T E                                  the value is the codeword, the gradient goes to all codes and z through p
loss = ||z - z_q||^2 + ||sg[z] - e||^2 + beta ||z - sg[e]||^2 + entropy (E[H(p)] - H(E[p]))
                                               (Shi et al. 2024, arXiv 2412.02692, section 3: double quantization)

What holds at D = 256, and why (measured: docs/decisions/0005-ibq-at-dimension-256.md):

- z.e grows with D and with |e|. Unscaled, p is one-hot, its gradient p_i (1 - p_i) vanishes, and the longest codewords
  win every lookup whatever their direction. A temperature mends the first and not the second.
- Cosines lie within about 1/sqrt(D) of each other. Unscaled, p is even over all codes, so every token pulls every code
  the same way.
- z.e - |e|^2/2 orders codes by distance, so a long codeword has no advantage, and the index is the nearest codeword.
  Its temperature is set from the data: first found, then followed, so that a token's softmax spreads over about
  `spread` codes at any D, N and scale of the features.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.config import STRICT, CodebookSize
from channelvq.distributed import broadcast_from_main, rank, sum_over_ranks
from channelvq.lookup.nearest import nearest_codeword
from channelvq.quantize.base import GlobalBatch, Quantizer, kept_rows, uniform_table
from channelvq.quantize.entropy import entropies, survey_entropies
from channelvq.quantize.kmeans import kmeans
from channelvq.quantize.quantized import Quantized, mean_over_kept, straight_through, vq_losses
from channelvq.quantize.soft import SoftCodes, soft_codes

SAMPLE = 256  # tokens that the first temperature is found from
GAIN = 0.1  # how fast the temperature follows


@dataclass(frozen=True, config=STRICT)
class IBQConfig:
    """beta, codebook_weight, start, kmeans_iterations: see `PlainConfig`. index_weight: of ||z - z_q||^2.
    entropy_weight: of the entropy term. spread: the codes that a token's softmax spreads over at first.

    logits: "distance" is (z.e - |e|^2/2) / tau, whose argmax is the nearest codeword; "dot" is z.e / tau, the paper's;
    "cosine" is z.e / (|z| |e| tau). temperature: tau; None sets it from the data, so that the softmax of a token
    spreads over about `spread` codes, exp(E[H(p)]). path: how z hears of the decoder, "straight" by the usual
    straight-through, with p moving the codes alone; "index" through p alone, as in the paper. The latter saves more
    codes from a bad start and reconstructs a little worse from a good one.
    """

    kind: Literal["ibq"] = "ibq"
    codebook_size: CodebookSize = 4096
    beta: Annotated[float, Field(ge=0)] = 0.25
    codebook_weight: Annotated[float, Field(ge=0)] = 1.0
    index_weight: Annotated[float, Field(ge=0)] = 1.0
    entropy_weight: Annotated[float, Field(ge=0)] = 0.05
    logits: Literal["distance", "dot", "cosine"] = "distance"
    temperature: Annotated[float, Field(gt=0)] | None = None
    spread: Annotated[float, Field(gt=1)] = 8.0
    path: Literal["straight", "index"] = "straight"
    start: Literal["data", "uniform"] = "data"
    kmeans_iterations: NonNegativeInt = 10

    def build(self, dim: int, num_tokens: int | None = None) -> "IBQCodebook":
        """The quantizer, for tokens of `dim` numbers."""
        return IBQCodebook(self, dim)


class IBQCodebook(Quantizer):
    """N codewords of D numbers, all of which every token moves."""

    tau: Tensor

    def __init__(self, config: IBQConfig, dim: int) -> None:
        super().__init__(config.codebook_size, dim, started=config.start == "uniform")
        self.config = config
        self.weight = nn.Parameter(uniform_table(config.codebook_size, dim))
        # Zero: not set yet.
        self.register_buffer("tau", torch.tensor(config.temperature or 0.0))

    def codes(self) -> Float[Tensor, "N D"]:
        """The table that indices refer to."""
        return self.weight

    def _place(self, vectors: Float[Tensor, "M D"], generator: torch.Generator) -> None:
        self.weight.copy_(kmeans(vectors, self.codebook_size, self.config.kmeans_iterations, generator))
        self.tau.fill_(self.config.temperature or 0.0)

    @property
    def over_batch(self) -> bool:
        """The second entropy is that of the global batch's mean, and the temperature follows the first once a step."""
        return True

    def _survey(
        self, vectors: Sequence[Float[Tensor, "b K D"]], keep: Sequence[Bool[Tensor, "b K"] | None], parts: int
    ) -> GlobalBatch:
        if not self.tau:
            rows = kept_rows(vectors, keep)
            self._set_temperature(self._scores(rows[:: max(1, len(rows) // SAMPLE)]))
        tau = self.tau.clone()
        softs = (self._soft(z, tau, kept) for z, kept in zip(vectors, keep, strict=True))
        batch, of_tokens = survey_entropies(softs, parts, tau)
        if self.config.temperature is None:
            self._follow(of_tokens, None if keep[0] is None else torch.cat([kept for kept in keep if kept is not None]))
        return batch

    def _quantize(self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None) -> Quantized:
        config = self.config
        indices = self._likeliest(z.detach().flatten(0, 1)).view(z.shape[:2])
        codes = self.indices_to_codes(indices)
        losses = vq_losses(z, codes, keep, codebook=config.codebook_weight, beta=config.beta)
        if not self.training:
            return Quantized(straight_through(z, codes), indices, losses)
        straight = config.path == "straight"
        if not self.tau:
            rows = kept_rows([z.detach()], [keep])
            self._set_temperature(self._scores(rows[:: max(1, len(rows) // SAMPLE)]))
        tau = self.tau if self.global_batch is None or self.global_batch.tau is None else self.global_batch.tau
        soft = self._soft(z.detach() if straight else z, tau, keep)
        # The product with Ind: in value the codeword; its gradient goes to the chosen code and, through p, to all.
        through = codes + soft.mixed
        z_q = straight_through(through + z if straight else through, codes)
        losses["index"] = config.index_weight * mean_over_kept((z - z_q).square().mean(2), keep)
        of_tokens, of_batch = entropies(soft, self.global_batch)
        losses["entropy"] = config.entropy_weight * (of_tokens - of_batch)
        if config.temperature is None and self.global_batch is None:
            self._follow(of_tokens.detach(), keep)
        return Quantized(z_q, indices, losses)

    def _soft(self, z: Float[Tensor, "B K D"], tau: Tensor, keep: Bool[Tensor, "B K"] | None) -> SoftCodes:
        """The softmax of every token, reduced; the product with the codes passes its gradient to the softmax alone."""
        table = self.weight.float()
        by_distance = self.config.logits == "distance"
        return soft_codes(*self._compared(z, table), table, tau, keep, by_distance=by_distance)

    def _compared(self, z: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """What the logits are products of."""
        if self.config.logits == "cosine":
            return F.normalize(z, dim=-1), F.normalize(table, dim=-1)
        return z, table

    @torch.no_grad()
    def _scores(self, z: Float[Tensor, "M D"]) -> Float[Tensor, "M N"]:
        """Logits at temperature 1."""
        z, table = self._compared(z, self.weight.float())
        scores = z @ table.T
        return scores - table.square().sum(1) / 2 if self.config.logits == "distance" else scores

    def _likeliest(self, z: Float[Tensor, "M D"]) -> Tensor:
        """The argmax of p, as a nearest codeword in the space where the likeliest one is the nearest."""
        table = self.weight.detach().float()
        if self.config.logits == "cosine":
            return nearest_codeword(*self._compared(z, table))
        if self.config.logits == "dot":
            # One more number brings all codewords to one norm; then |z - e|^2 orders them as -z.e does.
            squares = table.square().sum(1)
            table = torch.cat([table, (squares.max() - squares).sqrt()[:, None]], dim=1)
            z = F.pad(z, (0, 1))
        return nearest_codeword(z, table)

    @torch.no_grad()
    def _set_temperature(self, scores: Float[Tensor, "M N"]) -> None:
        """The tau at which the softmax of a token spreads over `spread` codes, by bisection of its logarithm."""
        if rank() == 0:
            sample = scores[:: max(1, len(scores) // SAMPLE)]
            size = float(sample.std().clamp(min=1e-12))
            low, high = math.log(size) - 20, math.log(size) + 20
            for _ in range(30):
                middle = (low + high) / 2
                log_p = torch.log_softmax(sample / math.exp(middle), dim=1)
                narrow = float(-(log_p.exp() * log_p).sum(1).mean()) < self._wanted()
                low, high = (middle, high) if narrow else (low, middle)
            self.tau.fill_(math.exp(high))
        broadcast_from_main([self.tau])

    @torch.no_grad()
    def _follow(self, entropy: Float[Tensor, ""], keep: Bool[Tensor, "B K"] | None) -> None:
        """One step of tau towards the wanted entropy, by the mean over the kept tokens of all ranks."""
        share = torch.ones_like(entropy) if keep is None else keep.to(entropy.dtype).mean()
        total, count = sum_over_ranks(torch.stack([entropy, share]))
        self.tau.mul_(torch.exp(GAIN * (self._wanted() - total / count)))

    def _wanted(self) -> float:
        return math.log(min(self.config.spread, (self.codebook_size + 1) / 2))
