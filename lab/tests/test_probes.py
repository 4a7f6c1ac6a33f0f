"""Gratings and gradients against their closed forms."""

import math

import pytest
import torch

from channelvq.errors import InputError
from lab.probes import gradients, gratings, measure

CYCLES, RANGES = (1, 2, 5, 12, 31), (3.0, 17.0, 255.0)


def test_a_picture_left_alone_has_all_its_contrast_and_no_fault() -> None:
    for probes in (gratings(64, CYCLES, (0.25, 1.0)), gradients(64, RANGES)):
        found = measure(probes, probes.images)
        assert (found["psnr"] == 100).all()
        assert (found["false_colour"] == 0).all()
        assert (found["reversals"] == 0).all() or "cycles" in probes.settings[0]
        wave = (probes.exact - probes.exact.mean((1, 2), keepdim=True)).abs()
        rounding = 0.5 * wave.mean((1, 2)) / wave.square().mean((1, 2))  # of half a level at most, all against the wave
        assert ((found["gain"] - 1).abs() <= rounding).all()


@pytest.mark.parametrize("contrast", [0.25, 1.0])
def test_the_gain_of_a_blur_is_its_transfer_function(contrast: float) -> None:
    probes = gratings(64, CYCLES, (contrast,))
    x = probes.exact
    for dim in (1, 2):  # (1, 2, 1) / 4, round the corner: cos^2(pi f / size)
        x = (x.roll(1, dim) + 2 * x + x.roll(-1, dim)) / 4
    blurred = x.round().to(torch.uint8)[:, None].repeat(1, 3, 1, 1)
    gain = measure(probes, blurred)["gain"]
    expected = [math.cos(math.pi * each["cycles"] / 64) ** 2 for each in probes.settings]
    assert gain == pytest.approx(expected, abs=2 / math.pi / (127.5 * contrast))  # half a level's worth


def test_a_flat_picture_has_no_contrast_and_the_psnr_of_a_sine() -> None:
    probes = gratings(64, (4,), (1.0,))
    flat = torch.full_like(probes.images, 128)
    found = measure(probes, flat)
    assert found["gain"].abs().max() < 1e-9
    # The variance of the sine is 127.5^2 / 2: 10 log10(255^2 / that) = 10 log10 8.
    assert found["psnr"] == pytest.approx(10 * math.log10(8), abs=0.01)


def test_banding_a_tint_and_an_inversion_are_told_apart() -> None:
    probes = gradients(64, (200.0,))
    images = probes.images
    banded = (images // 32 * 32).to(torch.uint8)
    tinted = images.clone()
    tinted[:, 0] += 12
    reversals = {name: measure(probes, x)["reversals"] for name, x in (("banded", banded), ("inverted", 255 - images))}
    assert (reversals["banded"] == 0).all()
    assert (reversals["inverted"] > 0.9).all()
    # One channel of three moved by 12: 12 sqrt(2) / 3.
    assert measure(probes, tinted)["false_colour"] == pytest.approx(12 * math.sqrt(2) / 3)
    assert measure(probes, 255 - images)["gain"] == pytest.approx(-1, abs=0.02)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match=r"must be in 1\.\.31"):
        gratings(64, (32,), (1.0,))
    with pytest.raises(InputError, match="at most 255"):
        gradients(64, (300.0,))
    with pytest.raises(InputError, match="shape"):
        measure(gradients(64, (10.0,)), torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
