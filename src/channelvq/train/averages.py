"""Moving averages of the weights, which are evaluated and saved in the place of the weights.

    whole weights     Average: a second model                         average-NAME.safetensors, by the main rank
    sharded weights   ShardedAverage: of each shard by its own rank   average-NAME/, a part by every rank

The sum is the same for every element, so what sharding changes is where it is made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from channelvq.pretrained import read_weights, write_weights


class MovingAverage(Protocol):
    """What a run does with the average of a model, whole or sharded."""

    def update(self, model: nn.Module) -> None:
        """One step of the average; buffers (such as "the codebook has been started") are copied, not averaged."""
        ...

    def save(self, folder: Path, name: str, main: bool) -> None:
        """Write it into a checkpoint's folder; all ranks call it together. main: whether this one is the main rank."""
        ...

    def load(self, folder: Path, name: str) -> None:
        """Take what `save` wrote."""
        ...

    def file(self, name: str) -> str:
        """By which file in a checkpoint it is there."""
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

    def save(self, folder: Path, name: str, main: bool) -> None:
        """As MovingAverage says."""
        if main:
            write_weights(folder / self.file(name), self._averaged.state_dict())

    def load(self, folder: Path, name: str) -> None:
        """As MovingAverage says."""
        self._averaged.load_state_dict(read_weights(folder / self.file(name)))

    def file(self, name: str) -> str:
        """As MovingAverage says."""
        return f"average-{name}.safetensors"


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

    def _state(self) -> dict[str, Any]:
        return {"means": self._means, "count": self._count}

    def save(self, folder: Path, name: str, main: bool) -> None:
        """As MovingAverage says."""
        from torch.distributed.checkpoint.state_dict_saver import save  # takes long to import

        save(self._state(), checkpoint_id=folder / f"average-{name}")

    def load(self, folder: Path, name: str) -> None:
        """As MovingAverage says."""
        from torch.distributed.checkpoint.state_dict_loader import load

        load(self._state(), checkpoint_id=folder / f"average-{name}")

    def file(self, name: str) -> str:
        """As MovingAverage says."""
        return f"average-{name}/.metadata"


def _part(tensor: Tensor) -> Tensor:
    to_local = getattr(tensor, "to_local", None)  # of a DTensor, whose module takes long to import
    return tensor.detach() if to_local is None else to_local().detach()
