"""The large parts of a checkpoint as whole tensors, as one process and ranks with whole weights (DDP) keep them.

model.safetensors, model_1.safetensors ...   optimizer.bin, optimizer_1.bin ...   average-NAME.safetensors
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import Tensor

from channelvq.pretrained import read_weights, write_weights
from channelvq.train.averages import Average

WRAPPED = "module."  # begins the names in the checkpoints that DDP wrote before


@dataclass(frozen=True)
class Plain:
    """States of the models and of the optimizers, in their order; of the averages, by name."""

    models: list[dict[str, Tensor]]
    optimizers: list[dict[str, Any]]
    averages: dict[str, dict[str, Tensor]]

    @classmethod
    def of(cls, accelerator: Accelerator, averages: Mapping[str, Average]) -> Self:
        """As they are now, not copied; of the main rank, for the others have the same: theirs is empty."""
        if not accelerator.is_main_process:
            return cls([], [], {})
        return cls(
            [accelerator.unwrap_model(model).state_dict() for model in accelerator._models],
            [optimizer.state_dict() for optimizer in accelerator._optimizers],
            {name: average.state() for name, average in averages.items()},
        )

    @classmethod
    def read(cls, folder: Path, models: int, optimizers: int, averages: Iterable[str]) -> Self:
        """Of a checkpoint's folder: so many models and optimizers, and the averages of these names."""
        return cls(
            [read_weights(folder / _numbered("model.safetensors", i)) for i in range(models)],
            [
                torch.load(folder / _numbered("optimizer.bin", i), map_location="cpu", weights_only=True)
                for i in range(optimizers)
            ],
            {name: read_weights(folder / average_file(name)) for name in averages},
        )

    def staged(self) -> Self:
        """A copy in the CPU's memory, which training leaves as it is."""
        return type(self)(**staged({field.name: getattr(self, field.name) for field in fields(self)}))

    def write(self, folder: Path) -> None:
        """Into a checkpoint's folder."""
        for i, model in enumerate(self.models):
            write_weights(folder / _numbered("model.safetensors", i), model)
        for i, optimizer in enumerate(self.optimizers):
            torch.save(optimizer, folder / _numbered("optimizer.bin", i))
        for name, average in self.averages.items():
            write_weights(folder / average_file(name), average)

    def give(self, accelerator: Accelerator, averages: Mapping[str, Average]) -> None:
        """Load them into what is trained; raises what torch does for those that do not fit."""
        for model, weights in zip(accelerator._models, self.models, strict=True):
            accelerator.unwrap_model(model).load_state_dict(
                {name.removeprefix(WRAPPED): weight for name, weight in weights.items()}
            )
        for optimizer, state in zip(accelerator._optimizers, self.optimizers, strict=True):
            optimizer.load_state_dict(state)
        for name, average in averages.items():
            average.take(self.averages[name])


def staged(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested states in the CPU's memory, by torch's own stager: what is sharded stays so."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions  # takes long to import

    stager = DefaultStager(StagingOptions(False, False, False, False))
    try:
        return stager.stage(state)  # pyright: ignore[reportReturnType] - no future without use_async_staging
    finally:
        stager.close()


def average_file(name: str) -> str:
    """Of the moving average of a model."""
    return f"average-{name}.safetensors"


def _numbered(file: str, i: int) -> str:
    """Names as Accelerate has them: model.safetensors, model_1.safetensors, ..."""
    return file.replace(".", f"_{i}.") if i else file
