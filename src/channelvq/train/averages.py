"""Moving averages of the weights, which are evaluated and saved in the place of the weights.

    whole weights     Average: a second model
    sharded weights   ShardedAverage: of each shard by its own rank

The sum is the same for every element, so what sharding changes is where it is made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(Protocol):
    """What a run does with the average of a model, whole or sharded."""

    def update(self, model: nn.Module) -> None:
        """One step of the average; buffers (such as "the codebook has been started") are copied, not averaged."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, not copied."""
        ...


def kept_of(decay: float, count: int) -> float:
    """How much of the average stays at update `count`, from 1: it grows to `decay`, so the start is soon forgotten."""
    return min(decay, (1 + count) / (10 + count))


class Average:
    """Of whole weights; `module` is the model to evaluate."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        def average(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
            return torch.lerp(mean, value, 1 - kept_of(decay, int(count)))

        self._averaged = AveragedModel(model, avg_fn=average)

    @property
    def module(self) -> nn.Module:
        """The model with the averages for weights."""
        return self._averaged.module

    def update(self, model: nn.Module) -> None:
        """As MovingAverage says."""
        self._averaged.update_parameters(model)
        for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def state(self) -> dict[str, Tensor]:
        """As MovingAverage says: "n_averaged", and all tensors of the model as "module.NAME"."""
        return self._averaged.state_dict()

    def take(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._averaged.load_state_dict(state)


class ShardedAverage:
    """Of weights of which this rank holds a part (FSDP2); buffers are whole on every rank, so they need no average."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self._count = decay, torch.zeros((), dtype=torch.int64)
        self._means = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """As MovingAverage says."""
        kept = kept_of(self.decay, int(self._count)) if self._count else 0.0  # the first one takes the weights
        for mean, weight in self._pairs(model):
            mean.lerp_(weight, 1 - kept)
        self._count += 1

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Within it the model has the averages for weights; then its own again, to the bit."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for mean, weight in self._pairs(model):
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)

    def _pairs(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Of every parameter this rank's part of the average and of the weight."""
        for name, weight in model.named_parameters():
            yield _part(self._means[name]), _part(weight)

    def state(self) -> dict[str, Any]:
        """As MovingAverage says: "means" by the names of the weights, of which each has its shard, and "count"."""
        return {"means": self._means, "count": self._count}

    @torch.no_grad()
    def take(self, model: nn.Module, count: int) -> None:
        """Be what the weights of a model are now, after so many updates."""
        for mean, weight in self._pairs(model):
            mean.copy_(weight)
        self._count.fill_(count)


def _part(tensor: Tensor) -> Tensor:
    to_local = getattr(tensor, "to_local", None)  # of a DTensor, whose module takes long to import
    return tensor.detach() if to_local is None else to_local().detach()
