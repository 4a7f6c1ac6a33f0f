"""From the logits of a token to the token: guidance, temperature, top-k, top-p, and one uniform number."""

import math
import warnings
from dataclasses import dataclass
from numbers import Real

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from channelvq.checks import whole
from channelvq.errors import InputError


@dataclass(frozen=True)
class Choice:
    """How tokens are chosen; see `CAR.generate`."""

    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def guided(self) -> bool:
        """Whether the unconditional prediction is needed."""
        return self.guidance_scale != 1.0

    def check(self, caption_dropout: float) -> None:
        """Raises InputError for a setting out of range; warns where guidance cannot do what is asked."""
        for name in ("guidance_scale", "temperature", "top_p"):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
                raise InputError(f"{name}: expected a finite number, got {value!r}")
        if self.temperature < 0:
            raise InputError(f"temperature: expected 0 (the likeliest token) or more, got {self.temperature}")
        if (top_k := whole(self.top_k)) is None or top_k < 0:
            raise InputError(f"top_k: expected a whole number, 0 (all tokens) or more, got {self.top_k!r}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: expected a number above 0 and at most 1, got {self.top_p}")
        self._warn(caption_dropout)

    def _warn(self, caption_dropout: float) -> None:
        if self.guidance_scale < 1:
            what = "ignores the prompt" if self.guidance_scale == 0 else "weakens or reverses the prompt"
            warnings.warn(
                f"guidance_scale {self.guidance_scale} {what}; 1 is no guidance, above 1 strengthens it", stacklevel=6
            )
        elif self.guidance_scale > 1 and caption_dropout == 0:
            warnings.warn(
                f"guidance_scale {self.guidance_scale}: the model was trained without caption dropout and has not "
                "learned the unconditional distribution; use guidance_scale=1, or train with model.caption_dropout=0.1",
                stacklevel=6,
            )


def guide(conditional: Float[Tensor, "B N"], unconditional: Float[Tensor, "B N"], scale: float) -> Float[Tensor, "B N"]:
    """Classifier-free guidance (Ho and Salimans 2022): away from the unconditional prediction by `scale`."""
    return unconditional + scale * (conditional - unconditional)


def choose(logits: Float[Tensor, "B N"], uniform: Float64[Tensor, " B"], choice: Choice) -> Int64[Tensor, " B"]:
    """One token a row: the inverse of the cumulative distribution at the row's uniform number in [0, 1).

    Raises InputError where no token has a finite largest logit: damaged weights, or guidance beyond all bounds.
    """
    largest = logits.amax(1, keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        raise InputError(
            f"the logits of a token are not finite: the generator's weights are damaged, or guidance_scale "
            f"{choice.guidance_scale:g} is too large"
        )
    if choice.temperature == 0:
        return logits.argmax(1)
    # The likeliest at 0: divided by a tiny temperature, no other may become infinite.
    logits = _filter((logits - largest) / choice.temperature, choice)
    # Summed in float64: in float32 the rounding of 65,536 terms is larger than the rarest codes' probabilities.
    cumulative = logits.softmax(1).double().cumsum(1)
    target = uniform[:, None] * cumulative[:, -1:]
    # right: a token of probability 0 is stepped over, also when the uniform number is 0.
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def _filter(logits: Tensor, choice: Choice) -> Tensor:
    """Logits with -inf for the tokens outside top-k and then outside top-p of what is left."""
    num_codes = logits.shape[1]
    top_k = min(choice.top_k or num_codes, num_codes)
    if top_k == num_codes and choice.top_p == 1:
        return logits
    # Stable: of equal logits the lower index comes first, as in argmax.
    ordered, places = torch.sort(logits, dim=1, descending=True, stable=True)
    ordered[:, top_k:] = -math.inf
    if choice.top_p < 1:
        probabilities = ordered.softmax(1).double()
        before = probabilities.cumsum(1) - probabilities
        ordered = ordered.masked_fill(before >= choice.top_p, -math.inf)
    return torch.empty_like(logits).scatter_(1, places, ordered)
