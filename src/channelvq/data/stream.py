"""Mixtures of sources as one endless, resumable sequence of images.

Position p of the stream decides everything about its image: the source, the index in it and the generator of its
augmentation. A run therefore resumes at its step without any state, whatever the number of workers or ranks.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Protocol

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from channelvq.data.source import Changing, Sample, Source
from channelvq.errors import InputError

PATTERN_LENGTH = 100  # positions after which the order of the sources in a mixture repeats
# Positions of images begin at 0; what else is drawn from the seed of the images has numbers below.
PATTERN, FIRST_SHUFFLE = -1, -2
MOST_STREAMS = 16


class Stream(IntEnum):
    """What the seed of a training decides beside its weights. Streams of one seed or of two never meet."""

    IMAGES = 0  # which image comes when, and how it is cropped, mirrored and coloured
    HIDDEN = 1  # which channels, or which captions, a step hides
    PARTS = 2  # which part of a square image is one of another shape

    def seed(self, seed: int) -> int:
        """The stream's own seed."""
        return MOST_STREAMS * seed + self


def position_generator(seed: int, position: int) -> torch.Generator:
    """The generator of one position: independent of all others, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{position}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def order_generator(seed: int, source: int, epoch: int) -> torch.Generator:
    """The generator of the order of a source's samples in an epoch."""
    number = 1_000_003 * epoch + source
    # Seed 0 keeps the orders that the stored results were made with; adding another seed to the number would make
    # source 1 under one seed come as source 0 under the next.
    return position_generator(seed, FIRST_SHUFFLE - number) if seed else torch.Generator().manual_seed(number)


class Positions(Protocol):
    """An endless sequence of samples whose positions decide everything about them; seed: what else decides."""

    seed: int

    def __getitem__(self, position: int) -> Sample: ...


class Mixture(Dataset[Sample]):
    """Several sources in proportion to their weights; within each, every sample once before any comes again."""

    def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float], seed: int) -> None:
        for name in sources:
            if not 0 <= weights[name] < math.inf:
                raise InputError(f"data source {name!r}: its weight is {weights[name]}, expected a number from 0")
        self.names = [name for name in sources if weights[name] > 0]
        if not self.names:
            raise InputError("data: no source has a weight above 0")
        for name in self.names:
            if len(sources[name]) == 0:
                raise InputError(f"data source {name!r} is empty: it has no image in this split")
        self.sources = [sources[name] for name in self.names]
        self.seed = seed
        self.pattern = _pattern([weights[name] for name in self.names], seed)
        self._orders: dict[int, tuple[int, Tensor]] = {}  # of each source: an epoch and its order

    def locate(self, position: int) -> tuple[int, int]:
        """(source, index in the source) of a position."""
        period, place = divmod(position, len(self.pattern))
        source = self.pattern[place]
        count = period * self.pattern.count(source) + self.pattern[:place].count(source)
        epoch, place = divmod(count, len(self.sources[source]))
        return source, int(self._order(source, epoch)[place])

    def _order(self, source: int, epoch: int) -> Tensor:
        """The order of a source's samples in an epoch; the last one is kept, 8 bytes a sample."""
        if source not in self._orders or self._orders[source][0] != epoch:
            generator = order_generator(self.seed, source, epoch)
            self._orders[source] = (epoch, torch.randperm(len(self.sources[source]), generator=generator))
        return self._orders[source][1]

    def stamp(self) -> str:
        """Changes with the files that samples come from; "" where the settings say all."""
        return "".join(source.stamp() for source in self.sources if isinstance(source, Changing))

    def __getitem__(self, position: int) -> Sample:
        source, index = self.locate(position)
        return self.sources[source].sample(index, position_generator(self.seed, position))


def _pattern(weights: Sequence[float], seed: int) -> list[int]:
    """Source of each of PATTERN_LENGTH positions: counts by largest remainder, at least one, in random order."""
    if len(weights) == 1:
        return [0]
    exact = [weight / sum(weights) * PATTERN_LENGTH for weight in weights]
    counts = [max(1, int(value)) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: int(exact[i]) - exact[i])
    for i in range(max(0, PATTERN_LENGTH - sum(counts))):
        counts[by_remainder[i % len(counts)]] += 1
    flat = [source for source, count in enumerate(counts) for _ in range(count)]
    return [flat[i] for i in torch.randperm(len(flat), generator=position_generator(seed, PATTERN)).tolist()]


def row_at(position: int, length: int, seed: int) -> int:
    """Which of `length` rows comes at a position of a training: each once before any comes again, always shuffled."""
    return _shuffled(length, position // length, seed)[position % length]


@lru_cache(maxsize=4)
def _shuffled(length: int, epoch: int, seed: int) -> list[int]:
    generator = position_generator(Stream.IMAGES.seed(seed), FIRST_SHUFFLE - epoch)
    return torch.randperm(length, generator=generator).tolist()


def stack_images(samples: Sequence[Sample]) -> UInt8[Tensor, "B *T 3 H W"]:
    """The images of some samples, or the clips, as one batch."""
    if len({sample.image.shape for sample in samples}) > 1:
        shapes = ", ".join(sorted({str(tuple(sample.image.shape)) for sample in samples}))
        raise InputError(f"data.sources: their images differ in shape, {shapes}: clips and pictures do not mix")
    return torch.stack([sample.image for sample in samples])


def rank_share(batch_size: int, rank: int, world: int) -> slice:
    """A rank's places in each global batch; raises InputError where it cannot be shared out evenly."""
    if batch_size % world:
        raise InputError(
            f"train.batch_size {batch_size} is the global batch: it must be a multiple of the {world} ranks"
        )
    share = batch_size // world
    return slice(rank * share, (rank + 1) * share)


def training_batches(
    mixture: Positions, batch_size: int, start_step: int, steps: int, *, rank: int = 0, world: int = 1, workers: int = 0
) -> Iterator[UInt8[Tensor, "b 3 H W"]]:
    """Batches of steps start_step..steps-1: this rank's share of each global batch of `batch_size` positions."""
    share = rank_share(batch_size, rank, world)
    # One by one: a list of the batches of 300,000 steps is kept for as long as the training goes.
    batches = (range(step * batch_size + share.start, step * batch_size + share.stop)
               for step in range(start_step, steps))  # fmt: skip
    loader = DataLoader(
        _Told(mixture),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_stacked_or_error,
        # The workers' base seed: without it DataLoader would draw from the global generator.
        generator=torch.Generator().manual_seed(mixture.seed),
    )
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


class _Told(Dataset[Sample | InputError]):
    """A mixture that hands errors on: DataLoader would put a worker's traceback into the text of what is raised."""

    def __init__(self, mixture: Positions) -> None:
        self.mixture = mixture

    def __getitem__(self, position: int) -> Sample | InputError:
        try:
            return self.mixture[position]
        except InputError as error:
            return error


def _stacked_or_error(samples: Sequence[Sample | InputError]) -> UInt8[Tensor, "B *T 3 H W"] | InputError:
    errors = [sample for sample in samples if isinstance(sample, InputError)]
    try:
        return errors[0] if errors else stack_images([sample for sample in samples if isinstance(sample, Sample)])
    except InputError as error:
        return error


def fixed_images(mixture: Positions, count: int) -> UInt8[Tensor, "n *T 3 H W"]:
    """The first `count` images of a mixture, for validation and tests: always the same ones."""
    return stack_images([mixture[position] for position in range(count)])


def num_pictures(mixture: Mixture, count: int) -> int:
    """How many different samples the first `count` images of a mixture are of: views of one are one."""
    return len({mixture.locate(position) for position in range(count)})


def distinct(images: UInt8[Tensor, "n *T 3 H W"]) -> list[int]:
    """The first place of each picture: of a small set pictures come again, which measures nothing more."""
    first: dict[bytes, int] = {}
    for i, image in enumerate(images):
        first.setdefault(image.numpy().tobytes(), i)
    return list(first.values())
