"""Coloured sine waves drawn by our code, from soft gradients to fine gratings: what photographs hold little of."""

import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT
from channelvq.data.source import Sample
from channelvq.data.split import Split

SAMPLES = 4096
SLOWEST = 0.25  # cycles a picture: half a wave fades from one colour to another
SHORTEST_PERIOD = 3.0  # pixels


@dataclass(frozen=True, config=STRICT)
class WaveConfig:
    """Coloured sine waves drawn by our code, from gradients to fine gratings (data/drawn/waves.py)."""

    kind: Literal["waves"] = "waves"
    weight: NonNegativeFloat = 1.0

    def build(self, size: int, split: Split) -> "WaveSource":
        """The source of one split, with images of size x size."""
        return WaveSource(size=size, split=split)


class WaveSource:
    """Numbered pictures of one wave between two colours; direction, phase and the log of the frequency are uniform.

    A picture's number decides nothing, its generator all; split is taken for the form's sake. text and key: "" and
    "wave".
    """

    def __init__(self, size: int = 64, split: Split = "train") -> None:
        self.size, self.split = size, split

    def __len__(self) -> int:
        return SAMPLES

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """uint8 (3, size, size)."""
        draws = torch.rand(9, generator=generator, dtype=torch.float64)
        fastest = self.size / SHORTEST_PERIOD
        cycles = SLOWEST * (fastest / SLOWEST) ** float(draws[0])
        angle, phase = 2 * math.pi * draws[1], 2 * math.pi * draws[2]
        x = torch.arange(self.size, dtype=torch.float64) / self.size
        along = x[None, :] * torch.cos(angle) + x[:, None] * torch.sin(angle)
        share = 0.5 + 0.5 * torch.sin(2 * math.pi * cycles * along + phase)
        one, other = draws[3:6, None, None], draws[6:9, None, None]
        return Sample((255 * (one + (other - one) * share)).round().to(torch.uint8), "", "wave")
