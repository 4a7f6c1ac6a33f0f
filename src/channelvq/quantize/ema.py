"""The codebook by moving averages, with revival of dead codes.

z (B, K, D) -> nearest codeword e -> straight-through
N_i <- gamma N_i + (1 - gamma) n_i      n_i: tokens of this step, over all ranks, whose nearest codeword is i
m_i <- gamma m_i + (1 - gamma) sum z    over those tokens
e_i <- m_i / N_i
loss = beta ||z - sg[e]||^2             (van den Oord et al. 2017, arXiv 1711.00937, eq. 3 and appendix A.1)

Revival (as in Dhariwal et al. 2020, arXiv 2005.00341, section 3.1): a code that no token chose for long moves onto a
token of the batch.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, NonNegativeInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from channelvq.config import STRICT, CodebookSize
from channelvq.distributed import broadcast_from_main, rank, sum_over_ranks
from channelvq.lookup.equal import first_equal
from channelvq.lookup.nearest import nearest_codeword
from channelvq.quantize.base import DrawingQuantizer, GlobalBatch, kept_rows, uniform_table
from channelvq.quantize.draw import Draw
from channelvq.quantize.kmeans import kmeans
from channelvq.quantize.quantized import Quantized, mean_over_kept, straight_through

# An average below this is left alone: its numbers would soon be too small for float32.
FAINT = 1e-20


@dataclass(frozen=True, config=STRICT)
class EMAConfig:
    """decay: gamma. beta: weight of the commitment term. start, kmeans_iterations, distance: see `PlainConfig`.

    revive_after: a code is dead when it was not chosen among the last `revive_after` * N tokens; 0 revives none. If all
    codes were as likely, one would be idle so long with probability exp(-revive_after), whatever the batch.
    """

    kind: Literal["ema"] = "ema"
    codebook_size: CodebookSize = 4096
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    beta: Annotated[float, Field(ge=0)] = 0.25
    revive_after: Annotated[float, Field(ge=0)] = 8.0
    start: Literal["data", "uniform"] = "data"
    kmeans_iterations: NonNegativeInt = 10
    distance: Literal["cosine"] | None = None

    def build(self, dim: int, num_tokens: int | None = None) -> "EMACodebook":
        """The quantizer, for tokens of `dim` numbers."""
        return EMACodebook(self, dim)


class EMACodebook(DrawingQuantizer):
    """N codewords of D numbers, each the moving average of the tokens that chose it.

    All state is in buffers and equal to the bit on every rank: counts and sums are added up over the ranks, and rank 0
    draws the tokens that dead codes move to. In training the codewords move between the lookup and the gathering, so
    what a forward pass returns is what `indices_to_codes` gives until the next one.
    """

    weight: Tensor
    counts: Tensor
    sums: Tensor
    idle: Tensor
    updates: Tensor

    def __init__(self, config: EMAConfig, dim: int) -> None:
        size, unit = config.codebook_size, config.distance is not None
        super().__init__(size, dim, started=config.start == "uniform", unit=unit)
        self.config = config
        table = self.compared(uniform_table(size, dim))
        self.register_buffer("weight", table)
        self.register_buffer("counts", torch.ones(size, device="cpu"))  # N_i
        self.register_buffer("sums", table.clone())  # m_i
        self.register_buffer("idle", torch.zeros(size, dtype=torch.int64, device="cpu"))  # tokens since last chosen
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device="cpu"))

    def codes(self) -> Float[Tensor, "N D"]:
        """The table that indices refer to."""
        return self.weight

    def _place(self, vectors: Float[Tensor, "M D"], generator: torch.Generator) -> None:
        centres = kmeans(vectors, self.codebook_size, self.config.kmeans_iterations, generator)
        self._set(slice(None), self.compared(centres))

    @property
    def over_batch(self) -> bool:
        """The averages move once a step, by all tokens of the batch."""
        return True

    def _survey(
        self, vectors: Sequence[Float[Tensor, "b K D"]], keep: Sequence[Bool[Tensor, "b K"] | None], parts: int
    ) -> GlobalBatch:
        # The codewords move now; the parts are then looked up where all of the batch was.
        before = self.weight.clone()
        z = kept_rows(vectors, keep).to(before.dtype)
        self._update(z, nearest_codeword(z, before))
        return GlobalBatch(parts, table=before)

    def _quantize(
        self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None, draw: Draw | None = None
    ) -> Quantized:
        table = self.weight if self.global_batch is None or self.global_batch.table is None else self.global_batch.table
        indices = self.codes_of(z, table, draw)
        if self.training and self.global_batch is None:
            kept = torch.ones_like(indices, dtype=torch.bool) if keep is None else keep
            self._update(z.detach()[kept].to(self.weight.dtype), indices[kept])
        codes = self.indices_to_codes(indices)
        losses = {"commitment": self.config.beta * mean_over_kept((z - codes).square().mean(2), keep)}
        return Quantized(straight_through(z, codes), indices, losses)

    @torch.no_grad()
    def _update(self, vectors: Float[Tensor, "M D"], indices: Int64[Tensor, " M"]) -> None:
        """One step of the averages on this batch's kept tokens, then revival."""
        chosen = sum_over_ranks(torch.bincount(indices, minlength=self.codebook_size))
        sums = sum_over_ranks(torch.zeros_like(self.sums).index_add_(0, indices, vectors))
        gamma = self.config.decay
        self.counts.mul_(gamma).add_(chosen, alpha=1 - gamma)
        self.sums.mul_(gamma).add_(sums, alpha=1 - gamma)
        averages = self.compared(self.sums / self.counts[:, None].clamp(min=FAINT))
        self.weight.copy_(torch.where(self.counts[:, None] > FAINT, averages, self.weight))
        self.idle.add_(chosen.sum()).masked_fill_(chosen > 0, 0)
        self.updates.add_(1)
        if self.config.revive_after:
            self._revive(vectors)

    def _revive(self, vectors: Float[Tensor, "M D"]) -> None:
        """Move dead codes onto tokens of rank 0, no two onto equal ones; those that must wait are revived later."""
        dead = (self.idle >= self.config.revive_after * self.codebook_size).nonzero()[:, 0]
        if not len(dead):
            return
        places = vectors.new_full((len(dead), self.dim), torch.nan)
        if rank() == 0:
            generator = torch.Generator().manual_seed(int(self.updates))
            distinct = first_equal(vectors).unique()
            order = torch.randperm(len(distinct), generator=generator)[: len(dead)].to(distinct.device)
            places[: len(order)] = vectors[distinct[order]]
        broadcast_from_main([places])
        revived = ~places.isnan().any(1)
        self._set(dead[revived], places[revived])

    def _set(self, at: Int64[Tensor, " n"] | slice, places: Float[Tensor, "n D"]) -> None:
        """Codewords put somewhere new, and with them their averages, which would draw them back otherwise."""
        self.weight[at] = places
        self.sums[at] = places
        self.counts[at] = 1.0
        self.idle[at] = 0
