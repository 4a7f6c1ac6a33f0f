"""How sure each token is of its code, and how evenly the codes are used: the two entropies of IBQ and LFQ."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from channelvq.distributed import num_ranks, sum_over_ranks
from channelvq.quantize.base import WholeBatch
from channelvq.quantize.soft import SoftCodes


def entropies(soft: SoftCodes, whole: WholeBatch | None = None) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(mean H(p), H(mean p)) in nats over the kept tokens of all ranks.

    Both are multiplied by the share of kept tokens, as every term of a quantizer (see `mean_over_kept`). The second
    differs from the mean over ranks of what each rank would find: the mean of p is over the global batch. Where the
    batch comes in parts (`whole`), its value for each part is that of the whole batch, and the mean of the parts'
    gradients is the whole batch's.
    """
    each, total, count = _mean_entropy(soft), soft.total, soft.weights.sum()
    if whole is not None and whole.total is not None and whole.count is not None and whole.share is not None:
        mean = (whole.total + whole.parts * (total - total.detach())) / whole.count
        return each, torch.special.entr(mean).sum() * whole.share
    if num_ranks() > 1:
        total, count = all_reduce(total), all_reduce(count)
    return each, torch.special.entr(total / count).sum() * soft.weights.mean()


def survey_entropies(
    parts: Iterable[SoftCodes], num_parts: int, tau: Tensor | None
) -> tuple[WholeBatch, Float[Tensor, ""]]:
    """(what `entropies` needs of the whole batch, mean over this rank of H(p) times the share of kept tokens).

    parts: of this rank. num_parts: of all ranks.
    """
    found = list(parts)
    counts = [(soft.total, soft.weights.sum(), soft.weights.new_tensor(len(soft.weights))) for soft in found]
    total, count, all_tokens = (sum_over_ranks(torch.stack(each).sum(0)) for each in zip(*counts, strict=True))
    whole = WholeBatch(num_parts, tau=tau, total=total, count=count, share=count / all_tokens)
    return whole, torch.stack([_mean_entropy(soft) for soft in found]).mean()


def _mean_entropy(soft: SoftCodes) -> Float[Tensor, ""]:
    return (soft.entropy * soft.weights).mean()
