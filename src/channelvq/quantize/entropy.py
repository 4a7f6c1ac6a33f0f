"""How sure each token is of its code, and how evenly the codes are used: the two entropies of IBQ and LFQ."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from channelvq.distributed import num_ranks, sum_over_ranks
from channelvq.quantize.base import GlobalBatch
from channelvq.quantize.soft import SoftCodes


def entropies(soft: SoftCodes, batch: GlobalBatch | None = None) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(mean H(p), H(mean p)) in nats over the kept tokens of all ranks.

    Both are multiplied by the share of kept tokens, as every term of a quantizer (see `mean_over_kept`). The second
    differs from the mean over ranks of what each rank would find: the mean of p is over the global batch. Where the
    batch comes in parts (`batch`), its value for each part is that of the global batch, and the mean of the parts'
    gradients is the global batch's.
    """
    of_tokens, total, count = _mean_entropy(soft), soft.total, soft.weights.sum()
    if batch is not None and batch.total is not None and batch.count is not None and batch.share is not None:
        mean = (batch.total + batch.parts * (total - total.detach())) / batch.count
        return of_tokens, torch.special.entr(mean).sum() * batch.share
    if num_ranks() > 1:
        total, count = all_reduce(total), all_reduce(count)
    return of_tokens, torch.special.entr(total / count).sum() * soft.weights.mean()


def survey_entropies(
    parts: Iterable[SoftCodes], num_parts: int, tau: Tensor | None
) -> tuple[GlobalBatch, Float[Tensor, ""]]:
    """(what `entropies` needs of the global batch, mean over this rank of H(p) times the share of kept tokens).

    parts: of this rank. num_parts: of all ranks.
    """
    softs = list(parts)
    counts = [(soft.total, soft.weights.sum(), soft.weights.new_tensor(len(soft.weights))) for soft in softs]
    total, count, all_tokens = (sum_over_ranks(torch.stack(column).sum(0)) for column in zip(*counts, strict=True))
    batch = GlobalBatch(num_parts, tau=tau, total=total, count=count, share=count / all_tokens)
    return batch, torch.stack([_mean_entropy(soft) for soft in softs]).mean()


def _mean_entropy(soft: SoftCodes) -> Float[Tensor, ""]:
    return (soft.entropy * soft.weights).mean()
