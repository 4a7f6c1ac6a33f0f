"""Batches of several sizes: one size a batch, and all of it decided by the position."""

import pytest
import torch

from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.sizes import SizedMixture
from channelvq.data.stream import Mixture, training_batches

SIZES = ((32, 32), (40, 56), (56, 40))


def mixture(side: int) -> Mixture:
    return build_mixture(DataConfig(), side, "train", seed=0)


def sized(parts_seed: int = 2) -> SizedMixture:
    return SizedMixture(SIZES, 3, 0, parts_seed, mixture)


def test_the_step_decides_the_size_and_its_images_have_it_all() -> None:
    batches = list(training_batches(sized(), 3, 0, 5))
    assert [tuple(batch.shape) for batch in batches] == [(3, 3, *SIZES[step % 3]) for step in range(5)]


@pytest.mark.parametrize("workers", [0, 2])
def test_begun_at_a_step_and_shared_out_they_are_the_same(workers: int) -> None:
    whole = list(training_batches(sized(), 3, 0, 5))
    later = list(training_batches(sized(), 3, 3, 5, workers=workers))
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], later, strict=True))
    ranks = [list(training_batches(sized(), 3, 0, 5, rank=rank, world=3)) for rank in range(3)]
    assert all(torch.equal(torch.cat(parts), batch) for *parts, batch in zip(*ranks, whole, strict=True))


def test_home_images_are_those_of_a_training_at_one_size() -> None:
    for position in (0, 1, 10):
        assert torch.equal(sized()[position].image, mixture(32)[position].image)


def test_a_part_is_of_the_square_picture_at_a_place_of_its_own() -> None:
    for position in range(3, 6):
        part, square = sized()[position].image, mixture(56)[position].image
        tops = [top for top in range(17) if torch.equal(square[:, top : top + 40], part)]
        assert len(tops) >= 1
        assert sized()[position].text == mixture(56)[position].text
    other = [torch.equal(sized(3)[position].image, sized()[position].image) for position in range(3, 6)]
    assert not all(other)


def test_sizes_grow_at_their_steps_wherever_one_begins() -> None:
    later = {4: ((48, 48), (56, 40)), 7: ((64, 64),)}
    grown = SizedMixture(SIZES, 3, 0, 2, mixture, later)
    expected = [*SIZES, SIZES[0], (48, 48), (56, 40), (48, 48), (64, 64), (64, 64)]
    assert [tuple(batch.shape[2:]) for batch in training_batches(grown, 3, 0, 9)] == expected
    whole = list(training_batches(grown, 3, 0, 9))
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], training_batches(grown, 3, 5, 9), strict=True))
    # Before it grows all is as without.
    assert all(torch.equal(a, b) for a, b in zip(whole[:4], training_batches(sized(), 3, 0, 4), strict=True))


def test_one_mixture_a_longer_side() -> None:
    built: list[int] = []

    def at(side: int) -> Mixture:
        built.append(side)
        return mixture(side)

    SizedMixture(SIZES, 3, 0, 2, at)
    assert built == [32, 56]
