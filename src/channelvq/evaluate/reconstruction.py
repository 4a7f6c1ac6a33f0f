"""Reconstruction quality of a tokenizer at every prefix length, and the use of its codebook, in one pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float64, UInt8
from rich.table import Table
from torch import Tensor

from channelvq.codec import num_bytes
from channelvq.errors import InputError
from channelvq.evaluate.metrics import Interval, check_images, mean_with_interval, psnr, ssim
from channelvq.images import normalize, to_uint8
from channelvq.pictures import prefix_lengths
from channelvq.quantize.usage import CodebookUsage, UsageReport


@runtime_checkable
class ImageTokenizer(Protocol):
    """What is measured: C tokens an image out of N codes, of which any prefix decodes."""

    @property
    def num_tokens(self) -> int:
        """C."""
        ...

    @property
    def codebook_size(self) -> int:
        """N."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        ...

    def tokenize(self, images: Tensor, /) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> ids (B, C)."""
        ...

    def detokenize(self, ids: Tensor, /, output: Literal["tensor"]) -> Tensor:
        """Ids (B, k), k <= C -> (B, 3, H, W) in [-1, 1]."""
        ...


@dataclass(frozen=True, eq=False)
class PrefixQuality:
    """Quality of the first num_tokens tokens: per-image values (n,) on the CPU and their means with intervals.

    num_bytes: as `channelvq.codec` packs them, in whole bits. bits_per_pixel: of their information, tokens * log2 N.
    """

    num_tokens: int
    num_bytes: int
    bits_per_pixel: float
    psnr: Interval
    ssim: Interval
    psnr_per_image: Float64[Tensor, " n"]
    ssim_per_image: Float64[Tensor, " n"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data without the per-image values."""
        return {
            "tokens": self.num_tokens,
            "bytes": self.num_bytes,
            "bits_per_pixel": self.bits_per_pixel,
            "psnr": self.psnr.mean,
            "psnr_interval": [self.psnr.low, self.psnr.high],
            "ssim": self.ssim.mean,
            "ssim_interval": [self.ssim.low, self.ssim.high],
        }


@dataclass(frozen=True, eq=False)
class ReconstructionReport:
    """One entry for each prefix length, shortest first, and the use of the codebook by all C tokens."""

    prefixes: tuple[PrefixQuality, ...]
    usage: UsageReport
    num_images: int

    def to_dict(self) -> dict[str, Any]:
        """The metrics of a result record: those of the longest prefix at the top, each prefix under "prefixes"."""
        last = self.prefixes[-1].to_dict()
        return {
            **{key: last[key] for key in ("psnr", "psnr_interval", "ssim", "ssim_interval", "bits_per_pixel", "bytes")},
            **self.usage.to_dict(),
            "num_images": self.num_images,
            "prefixes": [prefix.to_dict() for prefix in self.prefixes],
        }

    def smallest_prefix_for(self, psnr: float) -> PrefixQuality | None:
        """The shortest measured prefix whose mean PSNR is at least `psnr` dB; None where none is."""
        return next((prefix for prefix in self.prefixes if prefix.psnr.mean >= psnr), None)

    def table(self) -> Table:
        """For a terminal: `rich.print(report.table())`."""
        use, expected = self.usage.use, self.usage.use_if_uniform
        table = Table(
            title=f"Reconstruction of {self.num_images} images",
            caption=f"codebook: use {use:.1%} (uniform {expected:.1%}), perplexity {self.usage.perplexity:.0f} "
            f"({self.usage.perplexity_ratio:.1%} of the codes), {self.usage.tokens} tokens",
        )
        for heading in ("tokens", "bytes", "bits/pixel", "PSNR (dB)", "95 %", "SSIM", "95 %"):
            table.add_column(heading, justify="right")
        for p in self.prefixes:
            table.add_row(
                f"{p.num_tokens}",
                f"{p.num_bytes}",
                f"{p.bits_per_pixel:.4f}",
                f"{p.psnr.mean:.2f}",
                f"{p.psnr.low:.2f}..{p.psnr.high:.2f}",
                f"{p.ssim.mean:.4f}",
                f"{p.ssim.low:.4f}..{p.ssim.high:.4f}",
            )
        return table


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: ImageTokenizer,
    images: UInt8[Tensor, "n 3 h w"],
    *,
    prefixes: Sequence[int] | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> ReconstructionReport:
    """Tokenize each image once, decode each prefix of its tokens, and measure the result rounded to uint8.

    prefixes: numbers of tokens, by default 1, 2, 4, ... and C. seed: of the bootstrap. Raises InputError for images of
    another size than the tokenizer's (resize them first, and say so in the protocol) and for prefixes outside 1..C.
    """
    _check(tokenizer, images, batch_size)
    lengths = _prefix_lengths(tokenizer.num_tokens, prefixes)
    usage = CodebookUsage(tokenizer.codebook_size)
    psnrs: dict[int, list[Tensor]] = {k: [] for k in lengths}
    ssims: dict[int, list[Tensor]] = {k: [] for k in lengths}
    for batch in images.split(batch_size):
        ids = tokenizer.tokenize(normalize(batch))
        usage.update(ids)
        for k in lengths:
            decoded = to_uint8(tokenizer.detokenize(ids[:, :k], output="tensor")).cpu()
            psnrs[k].append(psnr(decoded, batch.cpu()))
            ssims[k].append(ssim(decoded, batch.cpu()))
    size = tokenizer.image_size
    measured = [
        _prefix_quality(k, tokenizer.codebook_size, size * size, torch.cat(psnrs[k]), torch.cat(ssims[k]), seed)
        for k in lengths
    ]
    return ReconstructionReport(tuple(measured), usage.result(), len(images))


def bits_for(num_tokens: int, codebook_size: int) -> float:
    """Information in num_tokens ids of N codes: num_tokens * log2 N bits."""
    return num_tokens * math.log2(codebook_size)


def _prefix_quality(k: int, codebook_size: int, pixels: int, psnrs: Tensor, ssims: Tensor, seed: int) -> PrefixQuality:
    bits = bits_for(k, codebook_size)
    return PrefixQuality(
        num_tokens=k,
        num_bytes=num_bytes(k, codebook_size),
        bits_per_pixel=bits / pixels,
        psnr=mean_with_interval(psnrs, seed),
        ssim=mean_with_interval(ssims, seed),
        psnr_per_image=psnrs,
        ssim_per_image=ssims,
    )


def _prefix_lengths(num_tokens: int, prefixes: Sequence[int] | None) -> list[int]:
    if prefixes is None:
        return prefix_lengths(num_tokens)
    if not prefixes or not all(1 <= k <= num_tokens for k in prefixes):
        raise InputError(f"prefixes: expected numbers of tokens in 1..{num_tokens}, got {list(prefixes)}")
    return sorted(set(prefixes))


def _check(tokenizer: ImageTokenizer, images: Tensor, batch_size: int) -> None:
    check_images(images)
    size = tokenizer.image_size
    if images.shape[-2:] != (size, size):
        raise InputError(
            f"images: the tokenizer is for {size} x {size} pixels, got {images.shape[-2]} x {images.shape[-1]}; "
            "resize them with antialiasing first, and name that in the protocol"
        )
    if batch_size < 1:
        raise InputError(f"batch_size: expected 1 or more, got {batch_size}")
