"""Kernel and Frechet distance of feature sets, by closed forms."""

import pytest
import torch

from channelvq.errors import InputError, NotFiniteError
from channelvq.evaluate import distances
from channelvq.evaluate.distances import frechet_dimensions, frechet_distance, kernel_distance, projected


def whitened(n: int, width: int, seed: int) -> torch.Tensor:
    """Features of mean zero and identity covariance, exactly."""
    x = torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T


def test_frechet_distance_of_diagonal_gaussians() -> None:
    x, y = whitened(200, 8, 0), whitened(300, 8, 1)
    spread, shift = torch.arange(1.0, 9.0), torch.linspace(-1, 1, 8, dtype=torch.float64)
    expected = float((shift.square() + (spread - 1).square()).sum())  # s^2 + 1 - 2 s for each dimension
    assert frechet_distance(x, y * spread + shift) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_is_refused_for_few_images() -> None:
    x = whitened(160, 8, 0)
    assert frechet_distance(x, x + 1) == pytest.approx(8)
    with pytest.raises(InputError, match="160 images or more, got 159 and 160"):
        frechet_distance(x[:-1], x)


@pytest.mark.parametrize(
    ("images", "width", "expected"),
    [
        (1280, 128, 64),
        (1279, 128, 32),
        (640, 128, 32),
        (320, 128, 16),
        (319, 128, None),
        (9999, 40, 32),
        (9999, 8, None),
    ],
)
def test_dimensions_leave_twenty_images_for_each(images: int, width: int, expected: int | None) -> None:
    assert frechet_dimensions(images, width) == expected


def test_projection_is_orthogonal_and_always_the_same() -> None:
    basis = projected(torch.eye(128), 32)
    torch.testing.assert_close(basis.T @ basis, torch.eye(32, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.rand(3)
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(projected(x, 32), x.double() @ basis, rtol=0, atol=1e-12)


def test_kernel_distance_wants_sets_of_one_size() -> None:
    with pytest.raises(InputError, match="got 30 and 20 images"):
        kernel_distance(torch.rand(30, 4), torch.rand(20, 4))
    with pytest.raises(InputError, match="two images or more"):
        kernel_distance(torch.rand(1, 4), torch.rand(1, 4))


def test_kernel_distance_of_many_images_is_the_mean_over_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_BLOCK", 40)
    x, y = (torch.randn(85, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    halves = [kernel_distance(x[part], y[part]) for part in (slice(0, 40), slice(40, 80))]
    assert kernel_distance(x, y) == pytest.approx(sum(halves) / 2, rel=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
def test_features_that_are_not_finite_are_refused(distance, bad: float) -> None:  # type: ignore[no-untyped-def]
    x = torch.rand(100, 4)
    broken = x.clone()
    broken[3, 1] = bad
    for pair in ((x, broken), (broken, x)):
        with pytest.raises(NotFiniteError, match="features: they hold NaN or infinity"):
            distance(*pair)


def test_kid_of_few_images_is_refused_and_the_protocol_says_so() -> None:
    x = torch.rand(3, 4)
    assert distances.KID.measure(x[:2], x[1:]) is None
    assert distances.KID.measure(x, x + 1) == kernel_distance(x, x + 1)
    assert distances.KID.definition(2, 128) == "refused: fewer than 3 images"
    assert "unbiased MMD^2" in distances.KID.definition(3, 128)
