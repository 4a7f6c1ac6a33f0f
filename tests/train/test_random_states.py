"""The states of the global generators, there and back: the next numbers are those that would have come."""

import random

import numpy as np
import pytest
import torch

from channelvq.pretrained import read_weights, write_weights
from channelvq.train.random_states import random_states, set_random_states


def numbers() -> list[float]:
    """Of each generator, more than a block of its state; normal ones of Python and numpy come in pairs."""
    some = [random.gauss(0, 1), float(np.random.normal())]
    some += [random.random() for _ in range(700)]
    some += np.random.random(700).tolist()
    return some + torch.rand(700).tolist() + torch.randn(9).tolist()


@pytest.fixture(autouse=True)
def as_before() -> None:
    state = random_states()
    yield
    set_random_states(state)


@pytest.mark.parametrize("halves", [0, 1])  # 1: the second number of a pair of normal ones is still to come
def test_the_next_numbers_are_those_that_would_have_come(halves: int, tmp_path) -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    numbers()
    random.seed(4), np.random.seed(5)
    for _ in range(halves):
        random.gauss(0, 1), np.random.normal()
    random.random(), np.random.random(11), torch.rand(5)
    state = random_states()
    write_weights(tmp_path / "states.safetensors", state)
    expected = numbers()
    assert numbers() != expected
    for again in (state, read_weights(tmp_path / "states.safetensors")):
        set_random_states(again)
        assert numbers() == expected
        set_random_states(again)
        now = random_states()
        assert all(torch.equal(now[name], value) for name, value in state.items())
        assert now.keys() == state.keys()
    assert numbers() == expected


def test_what_is_missing_or_damaged_is_an_error() -> None:
    state = random_states()
    for name in state:
        with pytest.raises(KeyError, match=name):
            set_random_states({key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match="state"):
        set_random_states(state | {"python": state["python"][:-1]})
    with pytest.raises((LookupError, ValueError)):
        set_random_states(state | {"numpy": state["numpy"][:-1]})
