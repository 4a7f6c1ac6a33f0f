"""Distances in the features of the bundled network."""

import pytest
import torch

from channelvq.errors import InputError
from channelvq.evaluate import distances
from channelvq.evaluate.features import FeatureDistance, embeddings, pair_distances
from channelvq.evaluate.held_out import held_out
from channelvq.nn.perceptual import PerceptualNetwork


def apart_by(network: PerceptualNetwork, a: torch.Tensor, b: torch.Tensor) -> float:
    return distances.kernel_distance(embeddings(network, a), embeddings(network, b))


@pytest.fixture(scope="module")
def network() -> PerceptualNetwork:
    return PerceptualNetwork.load("bundled")


@pytest.fixture(scope="module")
def scenes() -> torch.Tensor:
    return held_out("scenes", 48)


def noisy(images: torch.Tensor, size: float) -> torch.Tensor:
    noise = size * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images.float() + noise).round().clamp(0, 255).to(torch.uint8)


def test_distance_of_an_image_to_itself_is_zero_and_grows_with_noise(
    network: PerceptualNetwork, scenes: torch.Tensor
) -> None:
    assert pair_distances(FeatureDistance(network), scenes, scenes).abs().amax() == 0
    little, much = (pair_distances(FeatureDistance(network), noisy(scenes, size), scenes).mean() for size in (5, 40))
    assert 0 < little < much


def test_kernel_distance_is_the_unbiased_estimate(network: PerceptualNetwork, scenes: torch.Tensor) -> None:
    from channelvq.images import normalize

    other = noisy(scenes, 40)
    x, y = (network(normalize(images)).detach().double() for images in (scenes, other))

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T + 1) ** 3  # unit variance a number: the features times sqrt(E), over E

    n = len(x)
    off = 1 - torch.eye(n)
    within = sum(float((kernel(z, z) * off).sum()) / (n * (n - 1)) for z in (x, y))
    expected = within - 2 * float(kernel(x, y).mean())
    assert apart_by(network, other, scenes) == pytest.approx(expected, rel=1e-6)


def test_halves_of_one_set_are_closer_than_a_noisy_one(network: PerceptualNetwork, scenes: torch.Tensor) -> None:
    apart = apart_by(network, noisy(scenes[:24], 40), scenes[24:])
    assert apart_by(network, scenes[:24], scenes[24:]) < apart


def test_only_uint8_images_are_compared(network: PerceptualNetwork, scenes: torch.Tensor) -> None:
    with pytest.raises(InputError):
        pair_distances(FeatureDistance(network), scenes.float(), scenes)
