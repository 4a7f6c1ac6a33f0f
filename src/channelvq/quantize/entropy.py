"""How sure each token is of its code, and how evenly the codes are used: the two entropies of IBQ and LFQ."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from channelvq.quantize.base import WholeBatch, num_ranks, sum_over_ranks
from channelvq.quantize.quantized import mean_over_kept


def entropies(
    log_p: Float[Tensor, "B K N"], keep: Bool[Tensor, "B K"] | None, whole: WholeBatch | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(mean H(p), H(mean p)) in nats over the kept tokens of all ranks.

    Both are multiplied by the share of kept tokens, as every term of a quantizer (see `mean_over_kept`). The second
    differs from the mean over ranks of what each rank would find: the mean of p is over the global batch. Where the
    batch comes in parts (`whole`), its value for each part is that of the whole batch, and the mean of the parts'
    gradients is the whole batch's.
    """
    p = log_p.exp()
    each = mean_over_kept(-(p * log_p).sum(2), keep)
    weights = torch.ones_like(p[..., 0]) if keep is None else keep.to(p.dtype)
    total, count = (p * weights[:, :, None]).sum((0, 1)), weights.sum()
    if whole is not None and whole.total is not None and whole.count is not None and whole.share is not None:
        mean = (whole.total + whole.parts * (total - total.detach())) / whole.count
        return each, torch.special.entr(mean).sum() * whole.share
    if num_ranks() > 1:
        total, count = all_reduce(total), all_reduce(count)
    return each, torch.special.entr(total / count).sum() * weights.mean()


def survey_entropies(
    parts: Iterable[tuple[Float[Tensor, "b K N"], Bool[Tensor, "b K"] | None]], num_parts: int, tau: Tensor | None
) -> tuple[WholeBatch, Float[Tensor, ""]]:
    """(what `entropies` needs of the whole batch, mean over this rank of H(p) times the share of kept tokens).

    parts: log p and kept tokens of each part of this rank. num_parts: of all ranks.
    """
    totals, counts, tokens, each = [], [], [], []
    for log_p, keep in parts:
        p = log_p.exp()
        weights = torch.ones_like(p[..., 0]) if keep is None else keep.to(p.dtype)
        totals.append((p * weights[:, :, None]).sum((0, 1)))
        counts.append(weights.sum())
        tokens.append(torch.ones_like(weights).sum())
        each.append(mean_over_kept(-(p * log_p).sum(2), keep))
    total, count, all_tokens = (sum_over_ranks(torch.stack(found).sum(0)) for found in (totals, counts, tokens))
    whole = WholeBatch(num_parts, tau=tau, total=total, count=count, share=count / all_tokens)
    return whole, torch.stack(each).mean()
