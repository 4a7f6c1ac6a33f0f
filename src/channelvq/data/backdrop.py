"""Plain and gradient backgrounds, made of numbers in [0, 1) that the caller draws."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
NUM_DRAWS = 8
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Backdrop:
    """A soft gradient between two colours in the direction `turn` (1 is a full turn); plain where they are equal."""

    first: Colour
    second: Colour
    turn: float = 0.0

    def paint(self, size: int) -> Image.Image:
        """An RGB image of size x size pixels."""
        if self.first == self.second:
            return Image.new("RGB", (size, size), self.first)
        angle = 2 * np.pi * self.turn
        steps = np.linspace(-1, 1, size, dtype=np.float32)
        ramp = (np.cos(angle) * steps[None, :] + np.sin(angle) * steps[:, None]) / (2 * np.sqrt(2)) + 0.5
        start, end = np.array(self.first, np.float32), np.array(self.second, np.float32)
        return Image.fromarray((start + ramp[..., None] * (end - start)).round().astype(np.uint8))


def random_backdrop(draws: Sequence[float]) -> Backdrop:
    """The background of NUM_DRAWS uniform numbers: white (1 in 8), a plain colour (1 in 2), else a gradient."""
    kind, turn, *channels = draws
    first, second = _colour(channels[:3]), _colour(channels[3:6])
    if kind < 1 / 8:
        return Backdrop(WHITE, WHITE)
    return Backdrop(first, first) if kind < 5 / 8 else Backdrop(first, second, turn)


def _colour(channels: Sequence[float]) -> Colour:
    red, green, blue = (int(channel * 256) for channel in channels)
    return red, green, blue
