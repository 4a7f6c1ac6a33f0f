"""How images are drawn. Without torch, so that the command line reads the defaults from here."""

import math
import warnings
from dataclasses import dataclass
from numbers import Real

from channelvq.checks import check_whole_number, whole_number
from channelvq.errors import InputError


@dataclass(frozen=True)
class SamplingSettings:
    """What decides an image beside its prompt and the number of its tokens.

    guidance_scale: 1 is no guidance, above 1 follows the prompt more closely.
    temperature: 0 takes the likeliest token.
    top_k, top_p: draw from the k likeliest (0: all) and the fewest tokens that together have probability top_p.
    seed: image i of a call uses seed + i.
    Raises InputError for a setting out of range.
    """

    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "temperature", "top_p"):
            self._keep(name, _finite(name, getattr(self, name)))
        if self.temperature < 0:
            raise InputError(f"temperature: expected 0 (the likeliest token) or more, got {self.temperature}")
        if (top_k := whole_number(self.top_k)) is None or top_k < 0:
            raise InputError(f"top_k: expected a whole number, 0 (all tokens) or more, got {self.top_k!r}")
        self._keep("top_k", top_k)
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: expected a number above 0 and at most 1, got {self.top_p}")
        self._keep("seed", check_whole_number("seed", self.seed, 0))

    def _keep(self, name: str, value: float) -> None:
        # Numbers of numpy and torch as Python's own, so that settings can be written as JSON.
        object.__setattr__(self, name, value)

    @property
    def guided(self) -> bool:
        """Whether the unconditional prediction is needed."""
        return self.guidance_scale != 1.0

    def warn(self, caption_dropout: float, stacklevel: int) -> None:
        """UserWarning where guidance cannot do what is asked of a model; stacklevel: as for `warnings.warn`."""
        scale = f"guidance_scale {self.guidance_scale:g}"
        if self.guidance_scale < 1:
            what = "ignores the prompt" if self.guidance_scale == 0 else "weakens or reverses the prompt"
            warnings.warn(f"{scale} {what}; 1 is no guidance, above 1 strengthens it", stacklevel=stacklevel)
        elif self.guidance_scale > 1 and caption_dropout == 0:
            warnings.warn(
                f"{scale}: the model was trained without caption dropout and has not learned the unconditional "
                "distribution; use guidance_scale=1, or train with model.caption_dropout=0.1",
                stacklevel=stacklevel,
            )


def _finite(name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{name}: expected a finite number, got {value!r}")
    return float(value)
