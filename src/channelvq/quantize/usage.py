"""How much of a codebook is in use, over all of an evaluation set.

A number from one batch or a fixed buffer says little: use grows with the tokens looked at. So the count of tokens comes
with it, and what uniformly random codes would use at that count.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from channelvq.checks import check_whole_number, whole_numbers
from channelvq.errors import InputError


@dataclass(frozen=True)
class UsageReport:
    """Use of a codebook of N codes by `tokens` ids.

    use: share of codes that occur at all, in [0, 1]. perplexity: exp of the entropy of the ids, 1..N (the number of
    equally frequent codes that would have this entropy). perplexity_ratio: perplexity / N. use_if_uniform:
    1 - exp(-tokens / N), the use to expect of codes drawn uniformly at random. position_bits: entropy in bits of each
    token position (channel) alone, (C,), at most log2 of the number of images; None where ids were not (B, C).
    """

    use: float
    perplexity: float
    perplexity_ratio: float
    use_if_uniform: float
    tokens: int
    position_bits: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, float]:
        """The metrics of a result record, without what is of single positions."""
        return {
            "use": self.use,
            "use_if_uniform": self.use_if_uniform,
            "perplexity": self.perplexity,
            "perplexity_ratio": self.perplexity_ratio,
            "usage_tokens": self.tokens,
        }


class CodebookUsage:
    """Counts ids batch by batch; memory (C + 1) * N integers, or N with per_position=False.

    usage = CodebookUsage(4096)
    for images in batches: usage.update(tokenizer.tokenize(images))
    usage.result().perplexity
    """

    def __init__(self, codebook_size: int, *, per_position: bool = True) -> None:
        self.codebook_size = check_whole_number("codebook_size", codebook_size, 1)
        self.counts: Int64[Tensor, " N"] = torch.zeros(self.codebook_size, dtype=torch.int64)
        self._positions: Int64[Tensor, "C N"] | None = None
        self._per_position = per_position

    @property
    def position_counts(self) -> Int64[Tensor, "C N"] | None:
        """How often each code came at each position; None where ids were not (B, C) or before the first."""
        return self._positions

    def update(self, ids: Int64[Tensor, "..."]) -> None:
        """Count ids of any shape, 0..N-1; (B, C) ids are counted per position too.

        Raises InputError, with nothing counted, for ids that are no integers, out of range, or whose C changed.
        """
        ids = whole_numbers("codebook usage", ids).cpu()
        self._check(ids)
        counts = torch.bincount(ids.flatten(), minlength=self.codebook_size)
        if self._per_position:
            self._count_positions(ids)
        self.counts += counts

    def result(self) -> UsageReport:
        """Statistics of all ids so far, in float64; raises InputError before the first id."""
        tokens = int(self.counts.sum())
        if not tokens:
            raise InputError("codebook usage: no ids were counted yet; call update(ids) first")
        perplexity = math.exp(_entropy(self.counts).item())
        bits = None if self._positions is None else tuple((_entropy(self._positions) / math.log(2)).tolist())
        return UsageReport(
            use=self.counts.count_nonzero().item() / self.codebook_size,
            perplexity=perplexity,
            perplexity_ratio=perplexity / self.codebook_size,
            use_if_uniform=-math.expm1(-tokens / self.codebook_size),
            tokens=tokens,
            position_bits=bits,
        )

    def _check(self, ids: Tensor) -> None:
        outside = ids[(ids < 0) | (ids >= self.codebook_size)]
        if outside.numel():
            raise InputError(
                f"codebook usage: id {outside[0].item()} is outside 0..{self.codebook_size - 1}; "
                "codebook_size must be that of the tokenizer that made the ids"
            )

    def _count_positions(self, ids: Tensor) -> None:
        if ids.ndim != 2:
            # Ids without positions among them: a count per position would be of a part of the set only.
            self._positions, self._per_position = None, False
            return
        if self._positions is None:
            self._positions = torch.zeros(ids.shape[1], self.codebook_size, dtype=torch.int64)
        if ids.shape[1] != len(self._positions):
            raise InputError(
                f"codebook usage: ids have {ids.shape[1]} positions, earlier ones had {len(self._positions)}; "
                "count prefixes of different lengths apart"
            )
        self._positions.scatter_add_(1, ids.T, torch.ones_like(ids.T))


def _entropy(counts: Int64[Tensor, "... N"]) -> Float64[Tensor, "..."]:
    """Entropy in nats of the empirical distribution along the last dimension."""
    p = counts.double() / counts.sum(dim=-1, keepdim=True)
    return torch.special.entr(p).sum(dim=-1)
