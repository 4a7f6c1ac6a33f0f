"""Moving averages of the weights, which are evaluated and saved in the place of the weights."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of the weights; the decay grows to its value, so that the start is soon forgotten."""

    def average(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        return torch.lerp(mean, value, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return AveragedModel(model, avg_fn=average)


def update_average(average: AveragedModel, model: nn.Module) -> None:
    """One step of the average; buffers (such as "the codebook has been started") are copied, not averaged."""
    average.update_parameters(model)
    for mine, theirs in zip(average.module.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)
