"""Moving averages of weights: the closed form, with its warm-up, and buffers as they are."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import load, save

from channelvq.pretrained import read_weights, write_weights
from channelvq.train.averages import Average, ShardedAverage


def test_the_decay_grows_to_its_value() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = Average(model, 0.9)
    expected = None
    for step in range(200):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(model)
        # The first update takes the weights; number n after it keeps min(decay, (1 + n) / (10 + n)) of the average.
        kept = min(0.9, (1 + step) / (10 + step))
        expected = float(step) if expected is None else kept * expected + (1 - kept) * step
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5), step


def test_buffers_are_copied() -> None:
    model = nn.Module()
    model.register_buffer("started", torch.tensor(False))
    model.weight = nn.Parameter(torch.zeros(1))
    average = Average(model, 0.9)
    model.started.fill_(True)
    average.update(model)
    assert bool(average.module.started)


def test_a_part_of_the_weights_is_averaged_as_all_of_them_and_changes_places_with_them() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    whole, part = Average(model, 0.9), ShardedAverage(model, 0.9)
    for _ in range(20):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        whole.update(model)
        part.update(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with part.in_place(model):
        for name, mean in whole.module.state_dict().items():
            assert torch.equal(model.state_dict()[name], mean)
    for name, weight in before.items():
        assert torch.equal(model.state_dict()[name], weight)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # one process saves alone
@pytest.mark.parametrize("kind", [Average, ShardedAverage])
def test_an_average_that_was_saved_goes_on(kind: type[Average] | type[ShardedAverage], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = kind(model, 0.99)

    def move() -> None:
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(torch.ones_like(tensor) * 3)

    def means(of: Average | ShardedAverage) -> dict[str, torch.Tensor]:
        if isinstance(of, Average):
            return {name: tensor.clone() for name, tensor in of.module.state_dict().items()}
        with of.in_place(model):
            return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    for _ in range(4):
        average.update(model)
        move()
    again = kind(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), 0.99)
    if isinstance(average, Average):
        write_weights(tmp_path / "average.safetensors", average.state())
        again.take(read_weights(tmp_path / "average.safetensors"))
    else:
        save(average.state(), checkpoint_id=tmp_path / "average")
        load(again.state(), checkpoint_id=tmp_path / "average")
    assert means(again).keys() == means(average).keys() == model.state_dict().keys()
    for _ in range(2):  # how much is kept depends on the number of updates, which has to be there too
        for name, tensor in means(average).items():
            assert torch.equal(means(again)[name], tensor), name
        average.update(model)
        again.update(model)
        move()
