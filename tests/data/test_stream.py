"""The training stream: its position decides everything, whatever workers and ranks."""

import pytest
import torch

from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.files.folder import FolderConfig
from channelvq.data.source import Sample
from channelvq.data.stream import MOST_STREAMS, Mixture, Stream, fixed_images, training_batches
from channelvq.errors import InputError


class Numbers:
    """`length` images; each holds its source's mark, its index and one random number."""

    def __init__(self, mark: int, length: int) -> None:
        self.mark, self.length = mark, length

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        noise = int(torch.randint(256, (), generator=generator))
        pixels = torch.tensor([self.mark, index, noise], dtype=torch.uint8).view(3, 1, 1)
        return Sample(pixels, "", str(index))


def mixture(seed: int = 0, **weights: float) -> Mixture:
    sources = {"a": Numbers(0, 7), "b": Numbers(1, 50)}
    return Mixture(sources, {"a": 1.0, "b": 3.0} | weights, seed)


def read(stream: Mixture, count: int) -> list[tuple[int, ...]]:
    return [tuple(stream[p].image.flatten().tolist()) for p in range(count)]


def test_every_sample_comes_once_before_any_comes_again() -> None:
    stream = mixture()
    indices = {0: [], 1: []}
    for p in range(400):
        source, index = stream.locate(p)
        indices[source].append(index)
    assert len(indices[0]) == 100
    for source, length in ((0, 7), (1, 50)):
        epochs = [indices[source][i : i + length] for i in range(0, len(indices[source]) - length + 1, length)]
        assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_weights_set_the_proportions_and_zero_leaves_a_source_out() -> None:
    assert [mixture(a=1, b=1).pattern.count(s) for s in (0, 1)] == [50, 50]
    assert [mixture(a=1, b=2).pattern.count(s) for s in (0, 1)] == [33, 67]
    assert mixture(a=0.001, b=1).pattern.count(0) == 1
    assert mixture(a=0.0).names == ["b"]


def test_position_decides_and_seeds_differ() -> None:
    assert read(mixture(), 60) == read(mixture(), 60)
    assert read(mixture(seed=1), 60) != read(mixture(), 60)
    stream = mixture()
    assert stream[33].image.equal(mixture()[33].image)  # without what came before


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_go_on_from_any_step_with_any_number_of_workers(workers: int) -> None:
    whole = list(training_batches(mixture(), 6, 0, 5))
    rest = list(training_batches(mixture(), 6, 2, 5, workers=workers))
    assert len(whole) == 5
    assert len(rest) == 3
    assert all(torch.equal(x, y) for x, y in zip(whole[2:], rest, strict=True))


def test_ranks_share_what_one_would_read() -> None:
    whole = list(training_batches(mixture(), 6, 0, 3))
    shares = [list(training_batches(mixture(), 6, 0, 3, rank=rank, world=2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([first, second]), batch)
    with pytest.raises(InputError, match="multiple of the 4 ranks"):
        next(training_batches(mixture(), 6, 0, 3, world=4))


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(training_batches(mixture(), 6, 0, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_source_smaller_than_the_batch_repeats_and_an_empty_one_is_refused() -> None:
    (batch,) = training_batches(Mixture({"a": Numbers(0, 3)}, {"a": 1.0}, 0), 8, 0, 1)
    assert torch.bincount(batch[:, 1].flatten().long()).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    with pytest.raises(InputError, match="'a' is empty"):
        Mixture({"a": Numbers(0, 0)}, {"a": 1.0}, 0)
    with pytest.raises(InputError, match="weight"):
        mixture(a=0.0, b=0.0)
    for weight in (float("inf"), float("nan"), -1.0):
        with pytest.raises(InputError, match="'b': its weight is"):
            mixture(b=weight)
    with pytest.raises(InputError, match="every weight is 0"):
        build_mixture(DataConfig(sources={"x": FolderConfig(root="nowhere", weight=0)}), 64, "train", 0)


def test_fixed_images_are_the_first_positions() -> None:
    assert torch.equal(fixed_images(mixture(), 5), torch.stack([mixture()[p].image for p in range(5)]))


def test_streams_of_all_seeds_are_apart() -> None:
    seeds = [stream.seed(seed) for seed in (*range(50), 2**31 - 1) for stream in Stream]
    assert len(set(seeds)) == len(seeds)
    assert max(Stream) < MOST_STREAMS


def test_orders_of_all_seeds_are_apart() -> None:
    sources = {name: Numbers(0, 40) for name in "ab"}
    orders = {
        tuple(Mixture(sources, dict.fromkeys("ab", 1.0), seed)._order(source, epoch).tolist())
        for seed in range(4) for source in range(2) for epoch in range(3)
    }  # fmt: skip
    assert len(orders) == 4 * 2 * 3


class Broken(Numbers):
    def sample(self, index: int, generator: torch.Generator) -> Sample:
        raise InputError("the picture is gone: copy it again")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_is_told_in_its_own_words(workers: int) -> None:
    batches = training_batches(Mixture({"a": Broken(0, 7)}, {"a": 1.0}, 0), 2, 0, 1, workers=workers)
    with pytest.raises(InputError) as raised:
        next(batches)
    assert str(raised.value) == "the picture is gone: copy it again"
