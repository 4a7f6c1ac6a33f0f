"""Nested channel dropout: distribution and shape of what is kept."""

import torch

from channelvq.nested import NestedConfig, draw_keep, keep_mask


def draws(config: NestedConfig, batch: int = 20_000) -> torch.Tensor:
    return draw_keep(config, batch, 8, torch.Generator().manual_seed(0))


def test_alpha_is_the_probability_of_a_dropout() -> None:
    assert (draws(NestedConfig(alpha=0.0)) == 8).all()
    always = draws(NestedConfig(alpha=1.0))
    counts = torch.bincount(always, minlength=9)
    assert counts[0] == 0
    assert (counts[1:] / len(always) - 1 / 8).abs().max() < 0.01
    some = draws(NestedConfig(alpha=0.4))
    assert abs((some < 8).float().mean().item() - 0.4 * 7 / 8) < 0.01


def test_policy_batch_draws_once_and_image_each() -> None:
    assert len(draws(NestedConfig(alpha=1.0, policy="batch")).unique()) == 1
    assert len(draws(NestedConfig(alpha=1.0, policy="image")).unique()) == 8


def test_same_generator_same_draw() -> None:
    assert torch.equal(draws(NestedConfig(alpha=0.5)), draws(NestedConfig(alpha=0.5)))


def test_mask_keeps_leading_channels() -> None:
    assert keep_mask(torch.tensor([1, 3]), 3).tolist() == [[True, False, False], [True, True, True]]
