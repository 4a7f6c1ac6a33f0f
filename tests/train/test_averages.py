"""Moving averages of weights: the closed form, with its warm-up, and buffers as they are."""

import pytest
import torch
from torch import nn

from channelvq.train.averages import moving_average, update_average


def test_the_decay_grows_to_its_value() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = moving_average(model, 0.9)
    expected = None
    for step in range(200):
        with torch.no_grad():
            model.weight.fill_(float(step))
        update_average(average, model)
        # The first update takes the weights; number n after it keeps min(decay, (1 + n) / (10 + n)) of the average.
        kept = min(0.9, (1 + step) / (10 + step))
        expected = float(step) if expected is None else kept * expected + (1 - kept) * step
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5), step


def test_buffers_are_copied() -> None:
    model = nn.Module()
    model.register_buffer("started", torch.tensor(False))
    model.weight = nn.Parameter(torch.zeros(1))
    average = moving_average(model, 0.9)
    model.started.fill_(True)
    update_average(average, model)
    assert bool(average.module.started)
