"""What the same bytes buy without a learned tokenizer: PCA fitted on training images, JPEG and WebP."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from channelvq.evaluate import codecs, pca
from channelvq.evaluate.codecs import CodecResult, jpeg, webp
from channelvq.evaluate.metrics import psnr, ssim
from channelvq.evaluate.pca import PCABaseline

__all__ = ["PROTOCOL", "BaselinePoint", "CodecResult", "PCABaseline", "baseline_curves", "jpeg", "webp"]

PROTOCOL = {"pca": pca.PROTOCOL, **codecs.PROTOCOL}


@dataclass(frozen=True)
class BaselinePoint:
    """Means over the images at one budget; fits: share of the images that fit it (the others are at their smallest)."""

    budget: int
    num_bytes: float
    psnr: float
    ssim: float
    fits: float

    def to_dict(self) -> dict[str, int | float]:
        """Plain data for a result file."""
        return asdict(self)


def baseline_curves(
    images: UInt8[Tensor, "n 3 h w"], budgets: Sequence[int], pca_baseline: PCABaseline | None = None
) -> dict[str, list[BaselinePoint]]:
    """Quality at each budget in bytes, under "jpeg", "webp" and, where one is given, "pca"; raises InputError."""
    methods: dict[str, Callable[[Tensor, int], CodecResult]] = {"jpeg": jpeg, "webp": webp}
    if pca_baseline is not None:
        methods["pca"] = lambda batch, budget: _pca_result(pca_baseline, batch, budget)
    return {name: [_point(images, method(images, b), b) for b in budgets] for name, method in methods.items()}


def _point(images: Tensor, result: CodecResult, budget: int) -> BaselinePoint:
    return BaselinePoint(
        budget=budget,
        num_bytes=result.num_bytes.double().mean().item(),
        psnr=psnr(result.images, images).mean().item(),
        ssim=ssim(result.images, images).mean().item(),
        fits=result.fits.double().mean().item(),
    )


def _pca_result(baseline: PCABaseline, images: Tensor, budget: int) -> CodecResult:
    n = len(images)
    return CodecResult(baseline.reconstruct(images, budget), torch.full((n,), budget), torch.ones(n, dtype=torch.bool))
