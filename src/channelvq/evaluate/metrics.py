"""The metrics, listed once, and those of them that need no network: PSNR, SSIM, MS-SSIM of uint8 images.

Everything is computed per image in float64 (MS-SSIM: float32), so no value depends on the batch an image came in.

A metric of yours is a `PairMetric` or a `SetMetric` in a file of your own and one call of `METRICS.register(name, it)`:
evaluation, protocol, tables and comparison read this list. Its values stand in result files under that name.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
)

from channelvq.errors import InputError
from channelvq.registry import Registry

PSNR_CAP = 100.0
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
MS_SSIM_SIDE = 176  # four halvings, each rounded down, must leave the 11 pixels of the window
# Pixels worked on at a time. torch splits operations of more than 32,768 numbers over threads, and these are so short
# that on a busy machine the threads' waiting for each other takes 10 to 100 times as long as the work.
_PIECE_PIXELS = 32_768 // 3
_RESAMPLES = 2_000


PairFunction = Callable[[UInt8[Tensor, "n 3 h w"], UInt8[Tensor, "n 3 h w"]], Float[Tensor, " n"]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Metric:
    """heading: of its column in tables. digits: after the point; None: three (three significant ones without interval).

    libraries: that compute it, beside those that every protocol names.
    """

    heading: str
    better: Literal["higher", "lower"]
    digits: int | None = None
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class PairMetric(Metric):
    """One number an image, from it and its original. definition: for the protocol. least_side: of an image, in pixels.

    measure: images and their originals -> a number each. Or network: gives a module that does so with images in
    [-1, 1], None where its weights are not on this machine; it is told which perceptual network to use.
    """

    definition: str
    least_side: int = 1
    measure: PairFunction | None = None
    network: Callable[[str], nn.Module | None] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class SetMetric(Metric):
    """One number of two sets of images, from their features; it has no interval.

    measure: features of the images and of the originals -> the number, None where they are too few. definition: for the
    protocol, of so many images and so many numbers in a feature. spaces: kinds of `FeatureSpace` that it is measured
    in; None: any.
    """

    measure: Callable[[Float[Tensor, "n E"], Float[Tensor, "n E"]], float | None]
    definition: Callable[[int, int], str]
    spaces: tuple[str, ...] | None = None


METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "psnr": "channelvq.evaluate.metrics:PSNR",
        "ssim": "channelvq.evaluate.metrics:SSIM",
        "ms_ssim": "channelvq.evaluate.metrics:MS_SSIM",
        "perceptual": "channelvq.evaluate.features:PERCEPTUAL",
        "lpips_alex": "channelvq.evaluate.features:LPIPS_ALEX",
        "lpips_vgg": "channelvq.evaluate.features:LPIPS_VGG",
        "kid": "channelvq.evaluate.distances:KID",
        "frechet": "channelvq.evaluate.distances:FRECHET",
        "fid": "channelvq.evaluate.distances:FID",
    },
    # Beside the metrics a record says these things of a prefix.
    taken={"tokens", "bytes", "bits_per_pixel", "use", "use_if_uniform", "perplexity", "perplexity_ratio",
           "usage_tokens", "num_images", "prefixes"},
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its bootstrap interval (nan for a single value, which tells nothing of the spread)."""

    mean: float
    low: float
    high: float


def check_images(images: Tensor, name: str = "images") -> None:
    """Raise InputError unless `images` is a non-empty uint8 tensor (n, 3, H, W)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise InputError(
            f"{name}: expected a uint8 tensor (n, 3, H, W) in 0..255, got {images.dtype} {tuple(images.shape)}; "
            "channelvq.images.to_uint8 rounds a float tensor in [-1, 1]"
        )


def check_fit(images: Tensor, size: int) -> None:
    """Raise InputError unless `images` are uint8 and of a tokenizer's size."""
    check_images(images)
    if images.shape[-2:] != (size, size):
        raise InputError(
            f"images: the tokenizer is for {size} x {size} pixels, got {images.shape[-2]} x {images.shape[-1]}; "
            "resize them with antialiasing first, and name that in the protocol"
        )


def psnr(images: UInt8[Tensor, "n 3 h w"], references: UInt8[Tensor, "n 3 h w"]) -> Float64[Tensor, " n"]:
    """Peak signal-to-noise ratio of each image in dB, 10 log10(255^2 / MSE) with the MSE over its pixels and channels.

    Capped at 100 dB, which is also the value of identical images, so that a mean stays finite. Raises InputError on
    anything but two uint8 tensors of one shape.
    """
    _check_pair(images, references)
    return _in_pieces(_psnr, images, references).clamp(max=PSNR_CAP)


def ssim(images: UInt8[Tensor, "n 3 h w"], references: UInt8[Tensor, "n 3 h w"]) -> Float64[Tensor, " n"]:
    """Structural similarity of each image, the mean over positions and colour channels (Wang et al. 2004).

    Gaussian 11 x 11 window of sigma 1.5, K = (0.01, 0.03), range 255, population covariance; only windows that lie
    inside the image count. Equal to scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255)`, and to torchmetrics' full map without its border of 5 pixels.
    Raises InputError as `psnr` does, and for a side under 11 pixels.
    """
    # Own lines: torchmetrics takes 7 to 50 s in float32 (120 to 340 s in float64) for 7,000 pairs of 64 px, these 1 s.
    _check_pair(images, references)
    height, width = images.shape[-2:]
    if min(height, width) < _WINDOW:
        raise InputError(f"ssim: images of {height} x {width} are smaller than its window of {_WINDOW} x {_WINDOW}")
    return _in_pieces(lambda x, y: _ssim_map(x, y).mean(dim=(1, 2, 3)), images, references)


def ms_ssim(images: UInt8[Tensor, "n 3 h w"], references: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Multi-scale structural similarity of each image, by torchmetrics with its default five scales.

    Raises InputError where a side is under 176 pixels: the window does not fit into the fifth scale.
    """
    _check_pair(images, references)
    if min(images.shape[-2:]) < MS_SSIM_SIDE:
        raise InputError(
            f"ms_ssim: its five scales need sides of {MS_SSIM_SIDE} pixels or more, got "
            f"{images.shape[-2]} x {images.shape[-1]}; use ssim"
        )
    # One image a call: convolutions of other batch sizes differ in the last bits.
    pairs = zip(images.float().split(1), references.float().split(1), strict=True)
    return torch.cat([_ms_ssim_one(x, y) for x, y in pairs])


def mean_with_interval(values: Float[Tensor, " n"], seed: int, level: float = 0.95) -> Interval:
    """Mean over images with its percentile bootstrap interval: 2,000 resamples, drawn by a generator seeded `seed`.

    One seed resamples the same images for each metric of n values. Raises InputError for no values or a level outside
    (0, 1).
    """
    if values.ndim != 1 or not len(values) or not 0.0 < level < 1.0:
        raise InputError(
            f"mean_with_interval: expected (n,) values and a level in (0, 1), got {tuple(values.shape)}, {level}"
        )
    values = values.detach().cpu().double()
    if len(values) == 1:
        return Interval(values.item(), float("nan"), float("nan"))
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack([_resampled_mean(values, generator) for _ in range(_RESAMPLES)])
    tail = (1.0 - level) / 2.0
    low, high = torch.quantile(means, torch.tensor([tail, 1.0 - tail], dtype=torch.float64)).tolist()
    return Interval(values.mean().item(), low, high)


def with_interval(metrics: Mapping[str, Any], name: str, digits: int | None = None) -> str:
    """A figure of a record as text, with its interval where it has one: "20.83 (20.65 to 21.03)".

    digits: after the point; by default those of the metric. Raises InputError where the interval is none.
    """
    interval = metrics.get(f"{name}_interval")
    if interval is not None and not (isinstance(interval, (list, tuple)) and len(interval) == 2):
        raise InputError(f"{name}_interval: expected [low, high], got {interval!r:.80}")
    own = METRICS[name].digits if name in METRICS else None
    if interval is None and own is None:
        return f"{metrics[name]:.3g}"
    digits = next(choice for choice in (digits, own, 3) if choice is not None)
    if interval is None or not all(end is not None and math.isfinite(end) for end in interval):
        return f"{metrics[name]:.{digits}f}"
    ends = f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"
    return f"{metrics[name]:.{digits}f}{ends}"


def _check_pair(images: Tensor, references: Tensor) -> None:
    check_images(images)
    check_images(references, "references")
    if images.shape != references.shape:
        raise InputError(
            f"images and references must have one shape, got {tuple(images.shape)} and {tuple(references.shape)}"
        )


def _in_pieces(metric: Callable[[Tensor, Tensor], Tensor], images: Tensor, references: Tensor) -> Tensor:
    """The metric in float64, on a few images at a time."""
    rows = max(1, _PIECE_PIXELS // (images.shape[-2] * images.shape[-1]))
    pieces = zip(images.split(rows), references.split(rows), strict=True)
    return torch.cat([metric(x.double(), y.double()) for x, y in pieces])


def _psnr(x: Tensor, y: Tensor) -> Tensor:
    return peak_signal_noise_ratio(x, y, data_range=255.0, reduction="none", dim=(1, 2, 3))


def _resampled_mean(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randint(len(values), values.shape, generator=generator)].mean()


def _ms_ssim_one(image: Tensor, reference: Tensor) -> Tensor:
    return multiscale_structural_similarity_index_measure(image, reference, data_range=255.0, reduction="none")


def _ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """SSIM at each window that fits: (n, 3, h, w) -> (n, 3, h - 10, w - 10). Symbols as in Wang et al. 2004, eq. 13."""
    ux, uy, xx, yy, xy = (_blur(_blur(m, dim=-2), dim=-1) for m in (x, y, x * x, y * y, x * y))
    vx, vy, vxy = xx - ux * ux, yy - uy * uy, xy - ux * uy
    return (2 * ux * uy + _C1) * (2 * vxy + _C2) / ((ux * ux + uy * uy + _C1) * (vx + vy + _C2))


def _blur(maps: Tensor, dim: int) -> Tensor:
    """The Gaussian window along one dimension, as a sum of shifted views: no bit depends on the batch."""
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    taps = torch.softmax(-0.5 * (offsets / _SIGMA) ** 2, dim=0).tolist()
    length = maps.shape[dim] - _WINDOW + 1
    out = maps.narrow(dim, 0, length) * taps[0]
    for start, tap in enumerate(taps[1:], start=1):
        out.add_(maps.narrow(dim, start, length), alpha=tap)
    return out


PSNR = PairMetric(
    heading="PSNR (dB)", better="higher", digits=2, measure=psnr, definition=f"capped at {PSNR_CAP:g} dB",
)  # fmt: skip
SSIM = PairMetric(
    heading="SSIM", better="higher", measure=ssim,
    definition=f"gaussian {_WINDOW}x{_WINDOW} sigma {_SIGMA}, range 255, no border",
)  # fmt: skip
MS_SSIM = PairMetric(
    heading="MS-SSIM", better="higher", measure=ms_ssim, definition="torchmetrics, five scales",
    least_side=MS_SSIM_SIDE,
)  # fmt: skip
BASIC = {"psnr": PSNR, "ssim": SSIM}  # what is measured where nothing else is asked for
