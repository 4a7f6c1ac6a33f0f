"""Copies and sameness of samples, in closed form."""

import pytest
import torch

from channelvq.errors import InputError
from channelvq.report.samples import nearest, sample_report, spread


def test_nearest_is_by_angle_not_by_length() -> None:
    x = torch.tensor([[3.0, 0.0], [0.0, 0.1]])
    references = torch.tensor([[0.0, 9.0], [1.0, 1.0], [0.5, 0.0]])
    distance, place = nearest(x, references)
    assert place.tolist() == [2, 0]
    torch.testing.assert_close(distance, torch.zeros(2))


def test_spread_over_seeds_and_prompts() -> None:
    a, b, c = torch.eye(3)
    inside, between = spread(torch.stack([torch.stack([a, a]), torch.stack([b, c])]))
    assert inside.tolist() == [0.0, 1.0]  # the same picture twice; two unrelated ones
    assert between.tolist() == [1.0, 1.0]
    same = spread(torch.stack([torch.stack([a, b])] * 3))
    torch.testing.assert_close(same[1], torch.full((3,), 0.5))  # half of the pairs are the same picture


def test_copies_are_told_from_new_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    training, held_out = torch.randn(50, 16, generator=generator), torch.randn(20, 16, generator=generator)
    copied = sample_report(training[:6].view(3, 2, 16), training, held_out).to_dict()
    assert copied["nearer_than_any_held_out"] == 1.0
    assert copied["nearest_training"] < 1e-6
    fresh = sample_report(torch.randn(3, 2, 16, generator=generator), training, held_out)
    assert fresh.to_dict()["nearer_than_any_held_out"] < 0.5
    with pytest.raises(InputError, match="2 prompts and 2 seeds"):
        spread(torch.zeros(3, 1, 4))
