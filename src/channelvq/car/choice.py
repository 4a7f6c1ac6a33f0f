"""From the logits of a token to the token: guidance, temperature, top-k, top-p, and one uniform number."""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from channelvq.car.settings import SamplingSettings
from channelvq.errors import InputError


def guide(conditional: Float[Tensor, "B N"], unconditional: Float[Tensor, "B N"], scale: float) -> Float[Tensor, "B N"]:
    """Classifier-free guidance (Ho and Salimans 2022): away from the unconditional prediction by `scale`."""
    return unconditional + scale * (conditional - unconditional)


def choose(
    logits: Float[Tensor, "B N"], uniform: Float64[Tensor, " B"], settings: SamplingSettings
) -> Int64[Tensor, " B"]:
    """One token a row: the inverse of the cumulative distribution at the row's uniform number in [0, 1).

    Raises InputError where no token has a finite largest logit: damaged weights, or guidance beyond all bounds.
    """
    largest = logits.amax(1, keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        raise InputError(
            f"the logits of a token are not finite: the generator's weights are damaged, or guidance_scale "
            f"{settings.guidance_scale:g} is too large"
        )
    if settings.temperature < torch.finfo(logits.dtype).tiny:  # 0, or 0 in this precision
        return logits.argmax(1)
    # The likeliest at 0: divided by a tiny temperature, no other may become infinite.
    logits = _restrict((logits - largest) / settings.temperature, settings.top_k, settings.top_p)
    # Summed in float64: in float32 the rounding of 65,536 terms is larger than the rarest codes' probabilities.
    cumulative = logits.softmax(1).double().cumsum(1)
    target = uniform[:, None] * cumulative[:, -1:]
    # right: a token of probability 0 is stepped over, also when the uniform number is 0.
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def _restrict(logits: Float[Tensor, "B N"], top_k: int, top_p: float) -> Float[Tensor, "B N"]:
    """Logits with -inf for the tokens outside top-k and then outside top-p of what is left."""
    num_codes = logits.shape[1]
    top_k = min(top_k or num_codes, num_codes)
    if top_k == num_codes and top_p == 1:
        return logits
    # Stable: of equal logits the lower index comes first, as in argmax.
    ordered, places = torch.sort(logits, dim=1, descending=True, stable=True)
    ordered[:, top_k:] = -math.inf
    if top_p < 1:
        probabilities = ordered.softmax(1).double()
        before = probabilities.cumsum(1) - probabilities
        ordered = ordered.masked_fill(before >= top_p, -math.inf)
    return torch.empty_like(logits).scatter_(1, places, ordered)
