import math

import pytest
import torch

from channelvq.errors import InputError
from channelvq.evaluate.baselines import PCABaseline
from channelvq.evaluate.metrics import psnr
from channelvq.pretrained import write_weights

SIZE, COMPONENTS = 16, 12


def images_of(n: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    """Gray ramps of random offset and slopes with a little noise: nearly all variance in three directions."""
    generator = torch.Generator().manual_seed(seed)
    offset, dx, dy = torch.randn(3, n, 1, 1, 1, generator=generator) * spread
    line = torch.linspace(-1, 1, SIZE)
    plane = 128 + 30 * offset + 20 * dx * line + 10 * dy * line[:, None]
    noise = torch.randn(n, 3, SIZE, SIZE, generator=generator) * 2
    return (plane + noise).round().clamp(0, 255).byte()


@pytest.fixture(scope="module")
def baseline() -> PCABaseline:
    return PCABaseline.fit(images_of(400, seed=0), num_components=COMPONENTS)


def test_the_axes_are_orthonormal_and_ordered_by_variance(baseline: PCABaseline) -> None:
    gram = baseline.basis.double() @ baseline.basis.double().T
    # Stored a byte a number: errors of at most half a scale, which are independent of each other.
    error = baseline.basis.abs().amax(1).max() / 127 / 12**0.5
    torch.testing.assert_close(gram, torch.eye(COMPONENTS, dtype=torch.float64), rtol=0, atol=6 * float(error))
    variances = baseline.distortion[:, 0]
    assert (variances[:4].diff() <= 0).all()  # those beyond are noise: equal but for chance and the rounding
    assert variances[:3].sum() > 0.95 * variances.sum()


def test_a_cell_is_within_the_bits_and_the_bits_within_the_budget(baseline: PCABaseline) -> None:
    for num_bytes in (1, 2, 5, 9):
        bits = baseline.allocate(num_bytes)
        assert bits.sum() == 8 * num_bytes
        cells = baseline.encode(images_of(50, seed=1, spread=3.0), num_bytes)
        assert (cells >= 0).all()
        assert (cells < 2**bits).all()


def test_bits_follow_reverse_water_filling(baseline: PCABaseline) -> None:
    # distortions of the ideal law: each bit divides a variance by 4
    variances = 4.0 ** torch.tensor([5.0, 4.0, 2.0, 0.0])
    table = variances[:, None] * 4.0 ** -torch.arange(11.0)
    ideal = PCABaseline(1, 1, torch.zeros(3), torch.zeros(4, 3), torch.ones_like(table), table)
    # the water level 4**1 is reached by 4 + 3 + 1 + 0 bits
    assert ideal.allocate(1).tolist() == [4, 3, 1, 0]
    # level 4**-1.25: 6.25, 5.25, 3.25 and 1.25 bits; in whole bits the first of equals gets what is left
    assert ideal.allocate(2).tolist() == [7, 5, 3, 1]
    assert ideal.allocate(100).tolist() == [10] * 4


def test_more_bytes_are_better_and_approach_the_projection(baseline: PCABaseline) -> None:
    images = images_of(60, seed=2)
    values = [psnr(baseline.reconstruct(images, b), images).mean().item() for b in (1, 2, 4, 15)]
    assert values == sorted(values)
    # noise of sigma 2 outside the components cannot be coded
    assert values[-1] == pytest.approx(20 * math.log10(255 / 2.0), abs=0.5)


def test_fitted_ranges_beat_the_full_range(baseline: PCABaseline) -> None:
    """One bit for a Gaussian: levels at +-0.798 sigma leave 0.363 of its variance (Max 1960)."""
    assert (baseline.distortion[0, 1] / baseline.distortion[0, 0]).item() == pytest.approx(0.363, abs=0.04)
    assert (baseline.half_ranges[0, 1] / baseline.distortion[0, 0].sqrt()).item() == pytest.approx(1.6, abs=0.3)


def test_an_image_does_not_depend_on_its_neighbours(baseline: PCABaseline) -> None:
    images = images_of(70, seed=3)
    together = baseline.encode(images, 4)
    assert torch.equal(together, torch.cat([baseline.encode(part, 4) for part in images.split(7)]))


def test_saved_and_loaded_is_equal_to_the_bit(baseline: PCABaseline, tmp_path) -> None:
    images = images_of(5, seed=4)
    baseline.save(tmp_path / "pca.safetensors")
    loaded = PCABaseline.load(tmp_path / "pca.safetensors")
    assert torch.equal(loaded.basis, baseline.basis)
    assert torch.equal(loaded.reconstruct(images, 3), baseline.reconstruct(images, 3))
    assert (tmp_path / "pca.safetensors").stat().st_size < COMPONENTS * 3 * SIZE**2 + 6_000


def test_a_file_of_something_else_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        PCABaseline.load(tmp_path / "missing.safetensors")
    (tmp_path / "text").write_text("no tensors here")
    with pytest.raises(InputError, match="cannot be read"):
        PCABaseline.load(tmp_path / "text")
    for metadata in ({"height": "8", "width": "8"}, {}):  # no tensors; no size either
        write_weights(tmp_path / "other", {}, {"format": "channelvq-pca-1", **metadata})
        with pytest.raises(InputError, match=r"other: the PCA baseline is damaged"):
            PCABaseline.load(tmp_path / "other")


def test_fewer_images_than_components_give_fewer_components() -> None:
    few = PCABaseline.fit(images_of(5, seed=5), num_components=COMPONENTS)
    assert len(few.basis) == 4
    assert psnr(few.reconstruct(images_of(5, seed=5), 5), images_of(5, seed=5)).min() > 40


def test_unusable_input_is_refused(baseline: PCABaseline) -> None:
    with pytest.raises(InputError, match="16 x 16, got 8 x 16"):
        baseline.reconstruct(torch.zeros(1, 3, 8, 16, dtype=torch.uint8), 4)
    with pytest.raises(InputError, match="num_bytes"):
        baseline.reconstruct(images_of(1, seed=0), 0)
    with pytest.raises(InputError, match="all the same"):
        PCABaseline.fit(torch.full((9, 3, SIZE, SIZE), 7, dtype=torch.uint8))
    with pytest.raises(InputError, match="uint8"):
        PCABaseline.fit(torch.zeros(9, 3, SIZE, SIZE))
    with pytest.raises(InputError, match="num_components"):
        PCABaseline.fit(images_of(9, seed=0), num_components=0)
