"""Nats of the fixed predictor: what can be told of tokens is found, and no more."""

import math

import pytest
import torch
from tests.car.conftest import tiny_tokenizer
from torch import Tensor

from channelvq.errors import InputError
from channelvq.evaluate.predictability import predictability

CODES, TOKENS = 32, 8


def drawn(count: int, seed: int, *, tied: bool = False) -> Tensor:
    """Ids of uniform codes; tied: every second one is the one before it."""
    ids = torch.randint(CODES, (count, TOKENS), generator=torch.Generator().manual_seed(seed))
    if tied:
        ids[:, 1::2] = ids[:, ::2]
    return ids


def test_independent_tokens_cost_log_n_and_tied_ones_half() -> None:
    tokenizer = tiny_tokenizer(CODES)
    free = predictability(tokenizer, drawn(4096, 0), drawn(256, 1), steps=150)
    assert math.log(CODES) - 0.02 < free.nats < math.log(CODES) + 0.1
    tied = predictability(tokenizer, drawn(4096, 0, tied=True), drawn(256, 1, tied=True), steps=150)
    assert tied.nats < 0.75 * math.log(CODES)  # half of it, were it trained for longer
    assert abs(tied.nats_counts - math.log(CODES)) < 0.1  # counts by place see nothing of it
    assert max(tied.by_channel[1::2]) < min(tied.by_channel[::2])
    assert tied.nats_interval[0] < tied.nats < tied.nats_interval[1]


def test_the_same_ids_give_the_same_figures_and_nothing_else_changes() -> None:
    tokenizer, seen = tiny_tokenizer(CODES), []
    weights = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = predictability(tokenizer, drawn(300, 0), drawn(8, 1), steps=3, progress=lambda *d: seen.append(d))
    assert torch.equal(torch.get_rng_state(), before)
    assert predictability(tokenizer, drawn(300, 0), drawn(8, 1), steps=3) == first
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tokenizer.state_dict().items())
    assert all(p.requires_grad for p in tokenizer.parameters())
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match="255 images to learn from"):
        predictability(tiny_tokenizer(CODES), drawn(255, 0), drawn(8, 1))
    with pytest.raises(InputError, match="1 to measure"):
        predictability(tiny_tokenizer(CODES), drawn(256, 0), drawn(1, 1))
