"""Pixel losses in closed form."""

import pytest
import torch

from channelvq.losses.reconstruction import pixel_loss


def test_means_of_squares_and_of_magnitudes() -> None:
    x = torch.tensor([[0.0, 1.0, -1.0, 0.5]]).view(1, 1, 2, 2)
    x_hat = x + torch.tensor([0.5, -0.5, 0.0, 1.0]).view(1, 1, 2, 2)
    assert pixel_loss(x_hat, x, "l2").item() == pytest.approx((0.25 + 0.25 + 0 + 1) / 4)
    assert pixel_loss(x_hat, x, "l1").item() == pytest.approx((0.5 + 0.5 + 0 + 1) / 4)
