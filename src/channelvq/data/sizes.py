"""A training sequence whose batches have several sizes in turn, one size a batch.

Position p is of step p // batch_size, and the step decides the size; source, picture and its crop are those of p. So a
run resumes at its step without any state, as with one size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from channelvq.data.source import Sample
from channelvq.data.stream import Mixture, position_generator

Size = tuple[int, int]  # height, width


class SizedMixture(Dataset[Sample]):
    """A mixture at several sizes: of square images of the longer side a part of the size, at a random place.

    sizes: of steps 0, 1, ..., then again from the first. seed: of the images. parts_seed: of the places. at_side: the
    mixture of square images of a side. later: what the sizes become from a step on, by that step, in rising order.
    """

    def __init__(
        self, sizes: Sequence[Size], batch_size: int, seed: int, parts_seed: int, at_side: Callable[[int], Mixture],
        later: Mapping[int, Sequence[Size]] | None = None,
    ) -> None:  # fmt: skip
        self.stages = {0: tuple(sizes), **(later or {})}
        self.batch_size, self.seed, self.parts_seed = batch_size, seed, parts_seed
        sides = {max(size) for stage in self.stages.values() for size in stage}
        self.at_side = {side: at_side(side) for side in sorted(sides)}

    def size_of(self, position: int) -> Size:
        """Of all images of the position's step."""
        step = position // self.batch_size
        began = max(first for first in self.stages if first <= step)
        stage = self.stages[began]
        return stage[(step - began) % len(stage)]

    def __getitem__(self, position: int) -> Sample:
        size = self.size_of(position)
        sample = self.at_side[max(size)][position]
        draws = torch.rand(2, generator=position_generator(self.parts_seed, position), dtype=torch.float64).tolist()
        top, left = (int(draw * (max(size) - side + 1)) for draw, side in zip(draws, size, strict=True))
        return replace(sample, image=sample.image[:, top : top + size[0], left : left + size[1]])
