import numpy as np
import pytest
import torch

from channelvq.data.backdrop import NUM_DRAWS, Backdrop, random_backdrop


def test_plain_and_gradient_pixels() -> None:
    plain = np.asarray(Backdrop((10, 20, 30), (10, 20, 30)).paint(8))
    assert plain.shape == (8, 8, 3)
    assert (plain == [10, 20, 30]).all()
    ramp = np.asarray(Backdrop((0, 0, 0), (200, 100, 0), turn=0.0).paint(32)).astype(int)
    assert (np.diff(ramp[5, :, 0]) >= 0).all()
    assert (ramp[0] == ramp[31]).all()
    assert ramp[..., 0] == pytest.approx(2 * ramp[..., 1], abs=1)
    assert ramp[0, 0, 0] < 40
    assert ramp[0, -1, 0] > 160


def test_quarter_turn_runs_downwards() -> None:
    ramp = np.asarray(Backdrop((0, 0, 0), (200, 200, 200), turn=0.25).paint(32)).astype(int)
    assert ramp[-1, 3, 0] - ramp[0, 3, 0] > 100
    assert (abs(ramp[:, 0] - ramp[:, -1]) <= 1).all()


def test_random_backdrops_are_white_plain_or_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [random_backdrop(torch.rand(NUM_DRAWS, generator=generator).tolist()) for _ in range(400)]
    white = sum(backdrop == Backdrop((255, 255, 255), (255, 255, 255)) for backdrop in drawn)
    gradients = sum(backdrop.first != backdrop.second for backdrop in drawn)
    assert 25 < white < 80
    assert 110 < gradients < 190
    assert len({backdrop.first for backdrop in drawn}) > 300
