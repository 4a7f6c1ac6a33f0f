"""One step of sampling, compiled by torch.compile: a token costs mostly Python and small kernels on a small backbone.

Everything has a fixed shape: one new input a row, keys and values for all C tokens from the start, and a mask that says
which of them exist. The first step of a number of rows compiles, which takes 10 to 60 seconds in every process and
needs a C++ compiler on the CPU. There the weights are constants of the compiled code, in the layout that its products
like best; the copies of a number of rows stay until the process ends.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import DynamicCache

from channelvq.car.cache import FixedLayer, RoomyLayer
from channelvq.car.model import CAR
from channelvq.errors import InputError


class CompiledStep:
    """Goes on from a cache that the prompt has filled, a token a call."""

    def __init__(self, model: CAR, filled: DynamicCache, mask: Bool[Tensor, "R m"], have: int) -> None:
        self.mask, self.have = mask, have
        self.place = torch.zeros(1, dtype=torch.int64, device=mask.device)
        self.cache = DynamicCache(config=model.backbone.config)
        self.cache.layers[:] = [FixedLayer(_roomy(layer), self.place) for layer in filled.layers]
        self.seen = (mask & (torch.arange(mask.shape[1], device=mask.device) < have))[:, None, None]
        self.step = _compiled(model)

    def __call__(self, inputs: Float[Tensor, "R 1 E"], table: Float[Tensor, "N E"]) -> Float[Tensor, "R N"]:
        """The logits after one input a row; table: see `CAR.logits`."""
        self.place.fill_(self.have)
        self.seen[..., self.have] = True
        self.have += 1
        positions = self.mask[:, : self.have].sum(1, keepdim=True) - 1
        with _freezing() if inputs.device.type == "cpu" else nullcontext():
            return self.run(inputs, positions, table)

    def run(self, inputs: Tensor, positions: Int64[Tensor, "R 1"], table: Tensor) -> Float[Tensor, "R N"]:
        """The compiled function; apart, so that all that it reads beside its arguments stays where it is in memory."""
        return self.step(inputs, self.seen, positions, self.cache, table)


@lru_cache(maxsize=1)
def _freezing() -> AbstractContextManager[object]:
    """One for all calls: every patch that is made stays in its thread's context."""
    from torch._inductor import config

    return config.patch(freezing=True)


def _roomy(layer: Any) -> RoomyLayer:
    if not isinstance(layer, RoomyLayer):
        raise InputError(f"compiled=True: the backbone keeps a {type(layer).__name__}; only plain attention can be")
    return layer


def _compiled(model: CAR) -> Callable[..., Tensor]:
    """One function a model, on the CPU while its weights stay as they are, so that nothing is compiled twice."""
    on_cpu = model.device.type == "cpu"  # elsewhere the code reads the weights when it runs
    frozen = [*model.backbone.parameters(), *model.backbone.buffers(), *model.head.parameters()] if on_cpu else []
    return model.compiled_step.get(frozen, lambda: _compile(model))


def _compile(model: CAR) -> Callable[..., Tensor]:
    def step(inputs: Tensor, seen: Tensor, positions: Tensor, cache: DynamicCache, table: Tensor) -> Tensor:
        output = model.backbone(
            inputs_embeds=inputs, attention_mask=seen, position_ids=positions, cache=cache, use_cache=True
        )
        return model.logits(output.last_hidden_state, table)[:, 0]

    # A code object of its own: torch looks compiled code up by it, and would take what was made of other weights.
    step.__code__ = step.__code__.replace()
    options: dict[str, Any] = {"cpp_wrapper": True} if model.device.type == "cpu" else {}
    return torch.compile(step, dynamic=False, options=options)
