"""What every data set looks like to the rest of the library: numbered samples, drawn with an explicit generator.

A source never keeps state between calls: `sample(i, generator)` depends on its two arguments alone, so a training run
can resume at any position and two workers never disagree.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One image, or one clip of T frames, with what is known of it.

    image: uint8 RGB in [0, 255]. text: its caption ("" when there is none). key: where it came from, the same in every
    run (the label of an emoji, the name of a photo, the path of a file): splits and reports use it.
    """

    image: UInt8[Tensor, "*T 3 h w"]
    text: str
    key: str


@runtime_checkable
class Changing(Protocol):
    """A source whose samples may change while its settings stay: files of the user's."""

    def stamp(self) -> str:
        """A digest that changes with them."""
        ...


class Source(Protocol):
    """A numbered collection of samples of one size."""

    def __len__(self) -> int: ...

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """Sample number `index`; everything random about it (crop, background, flip) is drawn from `generator`."""
        ...
