"""Nested channel dropout: every policy's distribution against its closed form, bounds, and the curriculum's ends."""

import pytest
import torch

from channelvq.errors import InputError
from channelvq.nested import CurriculumConfig, NestedConfig, alpha_at, draw_keep, keep_mask, shortest_at
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe

# Quantiles of the chi-square distribution at 0.999, by degrees of freedom.
CHI_SQUARE = {3: 16.27, 4: 18.47, 7: 24.32}


def draws(
    config: NestedConfig, batch: int = 20_000, channels: int = 8, progress: float = 0.5, seed: int = 0
) -> torch.Tensor:
    return draw_keep(config, batch, channels, torch.Generator().manual_seed(seed), progress)


def assert_distributed(kept: torch.Tensor, expected: dict[int, float]) -> None:
    """Pearson's statistic of the draws is below the 0.999 quantile, and nothing else was drawn."""
    assert sum(expected.values()) == pytest.approx(1)
    assert set(kept.tolist()) <= set(expected)
    statistic = 0.0
    for value, probability in expected.items():
        wanted = probability * len(kept)
        statistic += (int((kept == value).sum()) - wanted) ** 2 / wanted
    assert statistic < CHI_SQUARE[len(expected) - 1]


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_lengths_are_uniform_where_channels_are_dropped(alpha: float) -> None:
    expected = {k: alpha / 8 + (1 - alpha if k == 8 else 0) for k in range(1, 9)}
    assert_distributed(draws(NestedConfig(alpha=alpha)), expected)


@pytest.mark.parametrize(("channels", "options"), [(8, (1, 2, 4, 8)), (11, (1, 2, 4, 8, 11))])
def test_powers_of_two_and_all_channels(channels: int, options: tuple[int, ...]) -> None:
    expected = {k: 0.6 / len(options) + (0.4 if k == channels else 0) for k in options}
    assert_distributed(draws(NestedConfig(alpha=0.6, lengths="powers"), channels=channels), expected)


def test_no_dropout_keeps_all() -> None:
    assert (draws(NestedConfig(alpha=0.0)) == 8).all()
    assert not NestedConfig(alpha=0.0).active
    assert NestedConfig(alpha=0.0, curriculum=CurriculumConfig(alpha=0.5)).active


@pytest.mark.parametrize("lengths", ["uniform", "powers"])
def test_policy_batch_draws_once_with_the_same_distribution(lengths: str) -> None:
    config = NestedConfig(alpha=1.0, policy="batch", lengths=lengths)  # type: ignore[arg-type]
    each = [draws(config, batch=3, seed=seed) for seed in range(2000)]
    assert all(len(kept.unique()) == 1 for kept in each)
    options = range(1, 9) if lengths == "uniform" else (1, 2, 4, 8)
    assert_distributed(torch.stack(each)[:, 0], {k: 1 / len(options) for k in options})
    image = NestedConfig(alpha=1.0, policy="image", lengths=lengths)  # type: ignore[arg-type]
    assert len(draws(image).unique()) == len(options)


def test_curriculum_goes_from_its_start_to_the_settings() -> None:
    config = NestedConfig(alpha=0.5, curriculum=CurriculumConfig(alpha=0.1, shortest=0.5, until=0.8))
    assert [alpha_at(config, p) for p in (0, 0.4, 0.8, 1)] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert [shortest_at(config, 8, p) for p in (0, 0.2, 0.4, 0.8, 1)] == [4, 3, 2, 1, 1]
    start = {k: 0.1 / 5 + (0.9 if k == 8 else 0) for k in range(4, 9)}
    assert_distributed(draws(config, progress=0.0), start)
    fixed = NestedConfig(alpha=0.5)
    for progress in (0.8, 1.0):  # the end is the policy without a curriculum, draw by draw
        assert torch.equal(draws(config, progress=progress), draws(fixed))
    # From no short prefix at all: as good as no dropout.
    assert (draws(NestedConfig(alpha=1.0, curriculum=CurriculumConfig(shortest=1.0)), progress=0.0) == 8).all()
    powers = NestedConfig(alpha=1.0, lengths="powers", curriculum=CurriculumConfig(shortest=0.5))
    assert draws(powers, progress=0.0).unique().tolist() == [4, 8]


@pytest.mark.parametrize("channels", [1, 2, 7, 64])
def test_what_is_kept_is_in_bounds(channels: int) -> None:
    for lengths in (None, "uniform", "powers"):
        for shortest in (0.0, 0.3, 1.0):
            config = NestedConfig(alpha=1.0, lengths=lengths, curriculum=CurriculumConfig(shortest=shortest))
            for progress in (0.0, 0.31, 1.0):
                kept = draws(config, 200, channels, progress)
                assert kept.min() >= shortest_at(config, channels, progress) >= 1
                assert kept.max() <= channels


def test_same_generator_same_draw() -> None:
    config = NestedConfig(alpha=0.5, lengths="powers", curriculum=CurriculumConfig(alpha=0.0))
    assert torch.equal(draws(config), draws(config))
    # What None means, and what runs were drawn before there was a choice.
    assert torch.equal(draws(NestedConfig(alpha=0.5)), draws(NestedConfig(alpha=0.5, lengths="uniform")))


def test_mask_keeps_leading_channels() -> None:
    assert keep_mask(torch.tensor([1, 3]), 3).tolist() == [[True, False, False], [True, True, True]]


def test_a_recipe_says_what_is_wrong_with_a_policy() -> None:
    with pytest.raises(
        InputError, match=r"nested\.curriculum\.until(.|\n)*nested\.lengths|nested\.lengths(.|\n)*until"
    ):
        load_recipe("small/smoke", ["nested.curriculum.until=0", "nested.lengths=odd"], of=TokenizerRecipe)
