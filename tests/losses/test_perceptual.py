"""The perceptual network and its distance: closed forms, files, and that its recipe learns."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from channelvq.data.fetched.packages import find_package
from channelvq.errors import InputError
from channelvq.losses.perceptual import FeatureDistance, PerceptualLossConfig
from channelvq.nn.perceptual import PerceptualConfig, PerceptualNetwork
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

HAS_EMOJI = all(find_package(name) for name in ("fluent-emoji", "noto", "twemoji", "emojibase-data"))
needs_emoji = pytest.mark.skipif(not HAS_EMOJI, reason="emoji packages not in the cache")


@pytest.fixture
def network() -> PerceptualNetwork:
    torch.manual_seed(0)
    return PerceptualNetwork(PerceptualConfig(widths=(4, 8, 8), embedding=6)).eval().requires_grad_(False)


def test_distance_is_zero_for_equal_images_and_grows(network: PerceptualNetwork) -> None:
    x, noise = torch.rand(3, 3, 16, 16) * 2 - 1, torch.randn(3, 3, 16, 16)
    distance = FeatureDistance(network)
    assert distance(x, x).tolist() == [0, 0, 0]
    near, far = distance(x + 0.02 * noise, x), distance(x + 0.4 * noise, x)
    assert (far > 2 * near).all()
    assert (near > 0).all()
    torch.testing.assert_close(distance(x[:1], x[1:2]), distance(x[1:2], x[:1]))
    # Of one image, whatever its neighbours.
    torch.testing.assert_close(distance(x + 0.4 * noise, x)[2:], distance((x + 0.4 * noise)[2:], x[2:]))


def test_distance_does_not_see_a_scale_of_the_features(network: PerceptualNetwork) -> None:
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    maps = [(a, b) for a, b in zip(network.features(x), network.features(y), strict=True)]
    expected = torch.stack(
        [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2)) for a, b in maps]
    ).mean(0)
    torch.testing.assert_close(FeatureDistance(network)(x, y), expected, atol=1e-4, rtol=1e-3)


def test_saved_and_loaded_is_the_same_and_frozen(network: PerceptualNetwork, tmp_path: Path) -> None:
    network.save(tmp_path)
    loaded = PerceptualNetwork.load(tmp_path)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(x), network(x))
    torch.testing.assert_close(loaded(x).norm(dim=1), torch.ones(2))
    assert not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(InputError, match=r"perceptual network .*neither 'bundled', a folder.*there is no such folder"):
        PerceptualNetwork.load(tmp_path / "none")


def test_lpips_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    with pytest.raises(InputError, match=r"'lpips-vgg': the package lpips .* use network=bundled"):
        PerceptualLossConfig(network="lpips-vgg").build()


def test_the_term_reaches_the_decoder_and_not_the_network(network: PerceptualNetwork, tmp_path: Path) -> None:
    network.save(tmp_path / "features")
    recipe = load_recipe(
        "small/smoke",
        ["model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8", "train.batch_size=2",
         "model.quantizer.codebook_size=16", "data.validation_images=4", "objective.start_images=8",
         f"objective.perceptual.network={tmp_path / 'features'}", "objective.perceptual.weight=0.5"],
        of=TokenizerRecipe)  # fmt: skip
    task = TokenizerTask(recipe)
    task.start()
    terms = task.losses("tokenizer", task.models, next(task.batches(0, 0, 1)), 0, part=0).terms
    terms["perceptual"].backward()
    assert all(p.grad is not None for p in task.tokenizer.decoder.parameters())
    assert task.perceptual is not None
    assert all(p.grad is None for p in task.perceptual.parameters())


def test_the_official_lpips_is_asked_for_by_its_networks_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    class LPIPS(torch.nn.Module):
        def __init__(self, **given: object) -> None:
            super().__init__()
            asked.append(given)

        def forward(self, x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return (x_hat - x).mean((1, 2, 3), keepdim=True)

    package = ModuleType("lpips")
    package.LPIPS = LPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    module = PerceptualLossConfig(network="lpips-vgg").build()
    assert asked == [{"net": "vgg", "verbose": False}]
    assert module(torch.ones(3, 3, 4, 4), torch.zeros(3, 3, 4, 4)).tolist() == [1.0, 1.0, 1.0]
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match=r"lpips-alex.*install it, or use network=bundled"):
        PerceptualLossConfig(network="lpips-alex").build()
