"""What is measured, and by which networks: chosen by what is on the machine, never downloaded."""

import sys
from pathlib import Path

import pytest
import torch

from channelvq.errors import InputError
from channelvq.evaluate.features import INCEPTION_FILE, LPIPS_FILES, FeatureDistance, pair_distances, perceptual_space
from channelvq.evaluate.held_out import held_out
from channelvq.evaluate.measures import Measures, choose_measures
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.nn.perceptual import PerceptualConfig, PerceptualNetwork
from channelvq.tokenizer import CVQTokenizer


@pytest.fixture
def network() -> PerceptualNetwork:
    torch.manual_seed(0)
    return PerceptualNetwork(PerceptualConfig(widths=(16, 32), embedding=48)).eval()


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder, where weights would lie."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_no_figure_depends_on_the_batch_size() -> None:
    images, tokenizer, measures = held_out("scenes", 9), CVQTokenizer.from_pretrained("bundled"), choose_measures(64)
    reports = [
        evaluate_reconstruction(tokenizer, images, prefixes=[5, 64], batch_size=size, measures=measures)
        for size in (1, 7, 64)
    ]
    found = [(report.to_dict(), report.per_image()) for report in reports]
    assert found[0] == found[1] == found[2]
    assert found[0][0]["perceptual"] > 0
    assert set(found[0][1]) == {"psnr", "ssim", "perceptual"}
    assert [prefix["usage_tokens"] for prefix in found[0][0]["prefixes"]] == [9 * 5, 9 * 64]
    prefix = found[0][0]["prefixes"][0]
    assert prefix["use"] == len(tokenizer.tokenize(torch_pictures(images))[:, :5].unique()) / 4096


def torch_pictures(images: torch.Tensor) -> list[torch.Tensor]:
    return [image / 127.5 - 1 for image in images.float()]


def test_features_of_the_same_images_in_other_batches(network: PerceptualNetwork) -> None:
    images = torch.randint(0, 256, (17, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise = torch.randint(0, 40, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    other, space = images // 2 + noise, perceptual_space(network)
    for rows in (1, 7):
        assert torch.equal(torch.cat([space.features(part) for part in images.split(rows)]), space.features(images))
        pairs = zip(images.split(rows), other.split(rows), strict=True)
        parts = [pair_distances(FeatureDistance(network), a, b) for a, b in pairs]
        assert torch.equal(torch.cat(parts), pair_distances(FeatureDistance(network), images, other))


def test_frechet_distance_is_refused_for_few_images_and_the_protocol_says_so(network: PerceptualNetwork) -> None:
    x = torch.randn(640, 48, generator=torch.Generator().manual_seed(0))
    measures = Measures(space=perceptual_space(network))
    assert set(measures.distances(x[:319], x[:319] + 1)) == {"kid"}
    assert "refused" in str(measures.protocol(319)["frechet"])
    assert set(measures.distances(x, x + 1)) == {"kid", "frechet"}
    assert str(measures.protocol(640)["frechet"]).startswith("32 of 48 dimensions")
    assert measures.distances(x[:1], x[:1]) == {}


def test_ms_ssim_where_its_scales_fit_and_no_network_where_none_is_wanted(empty_hub: Path) -> None:
    assert set(choose_measures(175, "none").pairs) == {"psnr", "ssim"}
    assert set(choose_measures(176, "none").pairs) == {"psnr", "ssim", "ms_ssim"}
    assert choose_measures(64, "none").space is None
    assert choose_measures(64, "none").protocol(5)["feature_network"] is None


def test_official_networks_are_used_only_where_their_weights_are(empty_hub: Path) -> None:
    chosen = choose_measures(64)
    assert set(chosen.pairs) == {"psnr", "ssim", "perceptual"}
    assert chosen.space is not None
    assert chosen.space.kind == "perceptual"
    protocol = chosen.protocol(400)
    assert {"kid", "frechet"} <= protocol.keys()
    assert "fid" not in protocol
    assert protocol["feature_network"]["name"] == "channelvq perceptual network, bundled"
    assert protocol["other_libraries"] == {}
    with pytest.raises(InputError, match=f"{INCEPTION_FILE} are not in"):
        choose_measures(64, "inception")


def test_weights_without_their_package_are_passed_over(empty_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch_fidelity", "lpips"):
        monkeypatch.setitem(sys.modules, package, None)  # importing it is an ImportError
    for name in (INCEPTION_FILE, *LPIPS_FILES.values()):
        (empty_hub / name).write_bytes(b"")
    assert set(choose_measures(64).pairs) == {"psnr", "ssim", "perceptual"}
    with pytest.raises(InputError, match="torch-fidelity"):
        choose_measures(64, "inception")


def test_what_is_measured_by_default_needs_no_network() -> None:
    assert set(Measures().pairs) == {"psnr", "ssim"}
    assert Measures().space is None
