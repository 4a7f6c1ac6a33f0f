import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from channelvq.errors import InputError
from channelvq.evaluate.metrics import METRICS, PSNR, mean_with_interval, ms_ssim, psnr, ssim, with_interval


def smooth_and_noisy(n: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images from flat to pure noise, and distorted copies: slight noise at first, an unrelated image at the end."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(20, 230, width).expand(n, 3, height, width)
    noise = torch.randint(0, 256, (n, 3, height, width), generator=generator).float()
    share = torch.linspace(0, 1, n)[:, None, None, None]
    images = ramp * (1 - share) + noise * share
    other = torch.randint(0, 256, images.shape, generator=generator).float()
    strength = torch.linspace(0.02, 1, n)[:, None, None, None]
    return images.byte(), (images * (1 - strength) + other * strength).byte()


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("offset", [1, 10, 100, 255])
def test_psnr_of_a_constant_offset_is_its_closed_form(offset: int) -> None:
    black = torch.zeros(2, 3, 5, 7, dtype=torch.uint8)
    expected = 20 * math.log10(255 / offset)
    assert psnr(black, black + offset).tolist() == pytest.approx([expected] * 2, abs=1e-5)


def test_psnr_equals_scikit_image() -> None:
    x, y = smooth_and_noisy(6, 17, 23)
    reference = [peak_signal_noise_ratio(as_array(a), as_array(b), data_range=255) for a, b in zip(x, y, strict=True)]
    assert psnr(x, y).tolist() == pytest.approx(reference, abs=1e-5)


def test_psnr_is_capped_for_equal_images_alone_of_a_batch() -> None:
    x, y = smooth_and_noisy(3, 12, 12)
    y[1] = x[1]
    values = psnr(y, x)
    assert values[1] == 100.0
    assert values[0] < 60
    assert values[2] < 60


@pytest.mark.parametrize("size", [(64, 64), (11, 11), (24, 37)])
def test_ssim_equals_scikit_image(size: tuple[int, int]) -> None:
    x, y = smooth_and_noisy(6, *size)
    reference = [
        structural_similarity(
            as_array(a),
            as_array(b),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=2,
        )
        for a, b in zip(x, y, strict=True)
    ]
    assert ssim(x, y).tolist() == pytest.approx(reference, abs=1e-9)


def test_ssim_equals_the_inside_of_the_map_of_torchmetrics() -> None:
    x, y = smooth_and_noisy(4, 32, 32)
    _, full = structural_similarity_index_measure(x.double(), y.double(), data_range=255.0, return_full_image=True)
    expected = full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    torch.testing.assert_close(ssim(x, y), expected, rtol=0, atol=1e-9)


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    x = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert ssim(x, x + 20).item() == pytest.approx(expected, abs=1e-9)
    assert ssim(x, x).item() == 1.0


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_no_bit_depends_on_the_batch(metric, batch_size: int) -> None:
    x, y = smooth_and_noisy(70, 32, 32)
    pieces = [metric(a, b) for a, b in zip(x.split(batch_size), y.split(batch_size), strict=True)]
    assert torch.equal(torch.cat(pieces), metric(x, y))


def test_ms_ssim_is_per_image_and_that_of_torchmetrics() -> None:
    x, y = smooth_and_noisy(3, 176, 180)
    values = ms_ssim(x, y)
    expected = multiscale_structural_similarity_index_measure(x.float(), y.float(), data_range=255.0, reduction="none")
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)
    assert torch.equal(values[1:2], ms_ssim(x[1:2], y[1:2]))
    assert ms_ssim(x[:1], x[:1]).item() == pytest.approx(1.0, abs=1e-6)
    assert values[0] > values[1] > values[2]


def test_ms_ssim_refuses_images_without_five_scales() -> None:
    x = torch.zeros(1, 3, 175, 256, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"176 pixels.*175 x 256"):
        ms_ssim(x, x)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_that_were_not_rounded_or_do_not_match_are_refused(metric) -> None:
    x = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(InputError, match="to_uint8"):
        metric(x.float(), x)
    with pytest.raises(InputError, match="references: expected a uint8"):
        metric(x, x[0])
    with pytest.raises(InputError, match="one shape"):
        metric(x, x[:1])
    with pytest.raises(InputError):
        metric(x[:0], x[:0])


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    x = torch.zeros(1, 3, 10, 64, dtype=torch.uint8)
    with pytest.raises(InputError, match="10 x 64"):
        ssim(x, x)


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.95996), (0.5, 0.67449)])
def test_interval_is_near_the_normal_one_for_many_values(level: float, z: float) -> None:
    values = torch.randn(1_000, generator=torch.Generator().manual_seed(3)) * 2 + 25
    interval = mean_with_interval(values, seed=0, level=level)
    half = z * values.std().item() / math.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean().item(), abs=1e-5)
    assert interval.high - interval.mean == pytest.approx(half, rel=0.1)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.1)


def test_interval_depends_on_its_seed_and_on_nothing_global() -> None:
    values = torch.arange(20.0)
    state = torch.get_rng_state()
    first = mean_with_interval(values, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert mean_with_interval(values, seed=1) == first
    assert mean_with_interval(values, seed=2) != first


def test_interval_of_few_values() -> None:
    one = mean_with_interval(torch.tensor([7.0]), seed=0)
    assert one.mean == 7.0
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    same = mean_with_interval(torch.full((5,), 3.0), seed=0)
    assert (same.low, same.mean, same.high) == (3.0, 3.0, 3.0)
    with pytest.raises(InputError):
        mean_with_interval(torch.tensor([]), seed=0)
    with pytest.raises(InputError, match="level"):
        mean_with_interval(torch.ones(3), seed=0, level=1.0)


@pytest.mark.parametrize("name", ["tokens", "bytes", "use", "prefixes", "num_images", "perplexity"])
def test_a_metric_may_not_take_the_name_of_another_figure(name: str) -> None:
    with pytest.raises(InputError, match=f"metric '{name}' is there already"):
        METRICS.register(name, PSNR)
    assert name not in METRICS


@pytest.mark.parametrize("interval", [[math.nan, math.nan], [None, None]])
def test_an_interval_that_is_not_known_is_not_shown(interval: list[float] | list[None]) -> None:
    metrics = {"psnr": 20.5, "psnr_interval": interval}
    assert with_interval(metrics, "psnr") == "20.50"
