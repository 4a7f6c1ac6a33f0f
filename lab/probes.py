"""Grey pictures of a closed form, gratings and gradients, and what a tokenizer leaves of them.

A grating of f cycles tells how much contrast is left at a spatial frequency (the modulation transfer of optics), a
gradient whether a soft slope stays smooth, monotonic and grey.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from channelvq.errors import InputError
from channelvq.evaluate.metrics import check_images, psnr

MIDDLE = 127.5  # grey level


@dataclass(frozen=True, eq=False)
class Probes:
    """exact: grey levels in [0, 255] before rounding. settings: what each picture shows, by name."""

    exact: Float64[Tensor, "n h w"]
    settings: tuple[dict[str, float], ...]

    @property
    def images(self) -> UInt8[Tensor, "n 3 h w"]:
        """The pictures, rounded."""
        return self.exact.round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()


def gratings(size: int, cycles: Sequence[int], contrasts: Sequence[float]) -> Probes:
    """Sine waves of whole `cycles` a picture: 127.5 (1 + contrast sin(2 pi f x / size + phase)).

    Each along both axes, in phases 0 and 90 degrees. Raises InputError unless 1 <= f < size / 2, 0 < contrast <= 1.
    """
    if not all(1 <= f < size / 2 for f in cycles) or not all(0 < c <= 1 for c in contrasts):
        raise InputError(
            f"gratings: cycles {list(cycles)} must be in 1..{math.ceil(size / 2) - 1} for {size} px, "
            f"contrasts {list(contrasts)} above 0 and at most 1"
        )
    x = torch.arange(size, dtype=torch.float64) / size
    pictures, settings = [], []
    for f in cycles:
        for contrast in contrasts:
            for phase in (0.0, math.pi / 2):
                wave = MIDDLE * (1 + contrast * torch.sin(2 * math.pi * f * x + phase)).expand(size, size)
                pictures += [wave, wave.T]
                settings += [{"cycles": f, "contrast": contrast}] * 2
    return Probes(torch.stack(pictures), tuple(settings))


def gradients(size: int, ranges: Sequence[float]) -> Probes:
    """Slopes around mid-grey over `ranges` grey levels: across, down, along the diagonal, and from the centre outwards.

    Raises InputError unless 0 < range <= 255.
    """
    if not all(0 < r <= 2 * MIDDLE for r in ranges):
        raise InputError(f"gradients: ranges {list(ranges)} must be above 0 and at most 255 grey levels")
    t = torch.linspace(0, 1, size, dtype=torch.float64).expand(size, size)
    radius = torch.hypot(t - 0.5, t.T - 0.5)
    slopes = (t, t.T, (t + t.T) / 2, (radius - radius.min()) / (radius.max() - radius.min()))
    pictures = [MIDDLE + r * (slope - 0.5) for r in ranges for slope in slopes]
    return Probes(torch.stack(pictures), tuple({"range": r} for r in ranges for _ in slopes))


def measure(probes: Probes, restored: UInt8[Tensor, "n 3 h w"]) -> dict[str, Float64[Tensor, " n"]]:
    """By name, a number for each picture.

    psnr: in dB. gain: contrast left, the slope of the least-squares line of restored over exact grey levels; 1 is all.
    false_colour: root mean square distance of the channels from their mean, in grey levels; 0 in a grey picture.
    reversals: share of places where the restored picture falls along the direction in which the exact one rises; 0 for
    any monotonic tone curve. Raises InputError for pictures of another shape.
    """
    check_images(restored)
    if restored.shape != (shape := probes.images.shape):
        raise InputError(f"probes: restored pictures must have the shape {tuple(shape)}, got {tuple(restored.shape)}")
    channels = restored.double()
    grey = channels.mean(1)
    wave = probes.exact - probes.exact.mean((1, 2), keepdim=True)
    along = sum(a * b for a, b in zip(_slopes(grey), _slopes(probes.exact), strict=True))
    return {
        "psnr": psnr(restored, probes.images),
        "gain": (grey * wave).sum((1, 2)) / wave.square().sum((1, 2)),
        "false_colour": (channels - grey[:, None]).square().mean((1, 2, 3)).sqrt(),
        # Sums of rounded channels: what is below this is not there.
        "reversals": (torch.as_tensor(along) < -1e-9).double().mean((1, 2)),
    }


def _slopes(grey: Float64[Tensor, "n h w"]) -> tuple[Tensor, Tensor]:
    """Differences to the next pixel across and down, (n, h - 1, w - 1) each."""
    return grey[:, :-1, 1:] - grey[:, :-1, :-1], grey[:, 1:, :-1] - grey[:, :-1, :-1]
