"""How sure each token is of its code, and how evenly the codes are used: the two entropies of IBQ and LFQ."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from channelvq.quantize.base import num_ranks
from channelvq.quantize.quantized import mean_over_kept


def entropies(
    log_p: Float[Tensor, "B K N"], keep: Bool[Tensor, "B K"] | None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(mean H(p), H(mean p)) in nats over the kept tokens of all ranks.

    Both are multiplied by the share of kept tokens, as every term of a quantizer (see `mean_over_kept`). The second
    differs from the mean over ranks of what each rank would find: the mean of p is over the global batch.
    """
    p = log_p.exp()
    each = mean_over_kept(-(p * log_p).sum(2), keep)
    weights = torch.ones_like(p[..., 0]) if keep is None else keep.to(p.dtype)
    total, count = (p * weights[:, :, None]).sum((0, 1)), weights.sum()
    if num_ranks() > 1:
        total, count = all_reduce(total), all_reduce(count)
    return each, torch.special.entr(total / count).sum() * weights.mean()
