"""Our metrics beside the reference tools': golden figures that `make peers` wrote in an environment of its own."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from channelvq.evaluate.distances import frechet_distance, kernel_distance
from channelvq.evaluate.metrics import ms_ssim
from channelvq.images import normalize
from channelvq.losses.perceptual import FeatureDistance

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/expected/peers.json").read_text())


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    """scripts/peers.py: the inputs and the stand-in backbone of both sides."""
    spec = importlib.util.spec_from_file_location("peers", ROOT / "scripts/peers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_frechet_distance_is_that_of_torch_fidelity(peers: ModuleType) -> None:
    assert frechet_distance(*peers.feature_sets()) == pytest.approx(GOLDEN["frechet"], rel=1e-6)


def test_kernel_distance_is_that_of_torch_fidelity(peers: ModuleType) -> None:
    assert kernel_distance(*peers.feature_sets()) == pytest.approx(GOLDEN["kid"], rel=1e-6)


@torch.no_grad()
def test_feature_distance_is_that_of_lpips_without_its_heads(peers: ModuleType) -> None:
    x, y = peers.images(32, 48)
    backbone = peers.StandIn()
    ours = FeatureDistance(backbone)(normalize(x), normalize(y))
    # Ours is the mean over the layers, theirs the sum.
    assert (2 * ours).tolist() == pytest.approx(GOLDEN["lpips_baseline"], abs=1e-4)


def test_ms_ssim_is_that_of_torchmetrics_beside_another_torch(peers: ModuleType) -> None:
    assert ms_ssim(*peers.images(176, 180)).tolist() == pytest.approx(GOLDEN["ms_ssim"], abs=1e-4)
