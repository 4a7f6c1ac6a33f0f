"""Codes drawn at random, the nearer the likelier: what a call may ask for instead of the nearest codeword.

p(n | z) = softmax_n(-|z - e_n|^2 / (2 tau))      of vectors of length 1 it is softmax_n(z . e_n / tau)

Drawn by the Gumbel-max trick, argmax_n(log p(n | z) + G_n); a temperature tau towards 0 draws the nearest codeword.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from channelvq.errors import InputError
from channelvq.lookup.precision import full_float32
from channelvq.lookup.tiles import HELD


@dataclass(frozen=True)
class Draw:
    """temperature: tau, above 0. generator: on the device of the vectors; each call draws on from it."""

    temperature: float
    generator: torch.Generator

    def __call__(self, vectors: Float[Tensor, "M D"], codebook: Float[Tensor, "N D"]) -> Int64[Tensor, " M"]:
        """The index drawn for each vector, in bounded memory. Raises InputError for a generator of another device."""
        if self.generator.device.type != vectors.device.type:
            raise InputError(
                f"the generator is on {self.generator.device}, the vectors on {vectors.device}; "
                f"give torch.Generator({vectors.device.type!r})"
            )
        parts = []
        with torch.no_grad(), full_float32():
            half_norms = codebook.square().sum(1) / 2
            for part in vectors.split(max(1, HELD // len(codebook))):
                logits = (part @ codebook.T - half_norms) / self.temperature
                waits = torch.empty_like(logits).exponential_(generator=self.generator)
                parts.append((logits - waits.log()).argmax(1))
        return torch.cat(parts)


def asked_draw(temperature: float | None, generator: torch.Generator | None) -> Draw | None:
    """What a call asks for by its two arguments; raises InputError for one without the other, or no temperature."""
    if temperature is None and generator is None:
        return None
    if not isinstance(generator, torch.Generator) or temperature is None:
        raise InputError("codes drawn at random need both temperature=0.1 and generator=torch.Generator(), say")
    if not (isinstance(temperature, int | float) and 0 < temperature < math.inf):
        raise InputError(f"temperature: expected a number above 0, got {temperature!r}; leave it out for the nearest")
    return Draw(float(temperature), generator)
