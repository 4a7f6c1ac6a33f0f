"""Reconstruction quality of a tokenizer at every prefix length, and the use of its codebook, in one pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float64, UInt8
from rich.table import Table
from torch import Tensor

from channelvq.checks import check_whole_number
from channelvq.errors import InputError, NotFiniteError
from channelvq.evaluate.measures import Measures
from channelvq.evaluate.metrics import (
    METRICS,
    Interval,
    check_fit,
    check_images,
    mean_with_interval,
    with_interval,
)
from channelvq.evaluate.resized import Resized
from channelvq.evaluate.tables import TextTable
from channelvq.images import normalize, to_uint8
from channelvq.packed_size import num_bytes
from channelvq.pictures import prefix_lengths
from channelvq.quantize.usage import CodebookUsage, UsageReport
from channelvq.tokenizer import CVQTokenizer


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
        """Ids (B, k), k <= C -> (B, 3, H, W) in [-1, 1]. One with a resampler is also told a size."""
        ...


@dataclass(frozen=True, eq=False)
class PrefixQuality:
    """Quality of the first num_tokens tokens.

    num_bytes: side by side in whole bits. bits_per_pixel: of their information, tokens * log2 N.
    per_image: by metric ("psnr", "ssim", ...), values (n,) on the CPU; intervals: their means with bootstrap intervals.
    distances: between all images and all originals ("kid", "frechet", "fid"), one number each; it has no interval,
    since images drawn with replacement come twice and are nearer to each other than any sample is. usage: of the
    codebook, by these tokens alone.
    """

    num_tokens: int
    num_bytes: int
    bits_per_pixel: float
    per_image: dict[str, Float64[Tensor, " n"]]
    intervals: dict[str, Interval]
    distances: dict[str, float]
    usage: UsageReport

    @property
    def psnr(self) -> Interval:
        """Mean PSNR in dB."""
        return self.intervals["psnr"]

    @property
    def ssim(self) -> Interval:
        """Mean SSIM."""
        return self.intervals["ssim"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data without the per-image values."""
        means = {name: interval.mean for name, interval in self.intervals.items()}
        ends = {f"{name}_interval": [interval.low, interval.high] for name, interval in self.intervals.items()}
        size = {"tokens": self.num_tokens, "bytes": self.num_bytes, "bits_per_pixel": self.bits_per_pixel}
        return {**size, **means, **ends, **self.distances, **self.usage.to_dict()}


@dataclass(frozen=True, eq=False)
class ReconstructionReport:
    """One entry for each prefix length, shortest first, and the use of the codebook by all C tokens."""

    prefixes: tuple[PrefixQuality, ...]
    usage: UsageReport
    num_images: int

    def to_dict(self) -> dict[str, Any]:
        """The metrics of a result record: those of the longest prefix at the top, each prefix under "prefixes"."""
        last = {key: value for key, value in self.prefixes[-1].to_dict().items() if key != "tokens"}
        prefixes = [prefix.to_dict() for prefix in self.prefixes]
        return {**last, **self.usage.to_dict(), "num_images": self.num_images, "prefixes": prefixes}

    def per_image(self) -> dict[str, dict[str, list[float]]]:
        """By metric and number of tokens, a value for each image."""
        return {
            name: {str(prefix.num_tokens): prefix.per_image[name].tolist() for prefix in self.prefixes}
            for name in self.prefixes[-1].per_image
        }

    def smallest_prefix_for(self, psnr: float) -> PrefixQuality | None:
        """The shortest measured prefix whose mean PSNR is at least `psnr` dB; None where none is."""
        return next((prefix for prefix in self.prefixes if prefix.psnr.mean >= psnr), None)

    def summary(self) -> str:
        """The use of the codebook in one line."""
        use, expected = self.usage.use, self.usage.use_if_uniform
        return (
            f"codebook: use {use:.1%} (uniform {expected:.1%}), perplexity {self.usage.perplexity:.0f} "
            f"({self.usage.perplexity_ratio:.1%} of the codes), {self.usage.tokens} tokens"
        )

    def text_table(self) -> TextTable:
        """A row a prefix; a mean comes with its interval."""
        prefixes = [prefix.to_dict() for prefix in self.prefixes]
        names = [name for name in METRICS.names() if name in prefixes[-1]]
        rows = [
            [str(p["tokens"]), str(p["bytes"]), f"{p['bits_per_pixel']:.3f}",
             *(with_interval(p, name) for name in names), f"{p['use']:.1%}"]
            for p in prefixes
        ]  # fmt: skip
        headings = ["tokens", "bytes", "bpp", *(METRICS[name].heading for name in names), "use"]
        return TextTable(headings, rows, f"Reconstruction of {self.num_images} images", self.summary())

    def table(self) -> Table:
        """For a terminal: `rich.print(report.table())`."""
        return self.text_table().terminal()

    def markdown(self) -> str:
        """The same as a Markdown table."""
        return f"{self.text_table().markdown()}\n"


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: ImageTokenizer,
    images: UInt8[Tensor, "n 3 h w"],
    *,
    prefixes: Sequence[int] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    measures: Measures | None = None,
) -> ReconstructionReport:
    """Tokenize each image once, decode each prefix of its tokens, and measure the result rounded to uint8.

    prefixes: numbers of tokens, by default 1, 2, 4, ... and C. seed: of the bootstrap. measures: by default PSNR and
    SSIM alone; see `choose_measures`. No figure depends on batch_size, which is for memory. Raises InputError for
    images of another size than the tokenizer's, or than one that it works at (resize them first, and say so in the
    protocol) and for prefixes outside 1..C.
    """
    size = _checked_size(tokenizer, images)
    check_whole_number("batch_size", batch_size, 1)
    measures = measures or Measures()
    lengths = _prefix_lengths(tokenizer.num_tokens, prefixes)
    usage = CodebookUsage(tokenizer.codebook_size)
    gathered = {k: _Gathered(tokenizer.codebook_size) for k in lengths}
    originals = []
    for batch in images.split(batch_size):
        ids = tokenizer.tokenize(normalize(batch))
        usage.update(ids)
        if measures.space is not None:
            originals.append(measures.space.features(batch))
        for k, prefix in gathered.items():
            decoded = to_uint8(tokenizer.detokenize(ids[:, :k], output="tensor", **size)).cpu()
            prefix.add(decoded, batch.cpu(), ids[:, :k], measures)
    pixels, seen = images.shape[2] * images.shape[3], torch.cat(originals) if originals else None
    measured = [prefix.quality(k, pixels, seen, measures, seed) for k, prefix in gathered.items()]
    return ReconstructionReport(tuple(measured), usage.result(), len(images))


def _checked_size(tokenizer: ImageTokenizer, images: Tensor) -> dict[str, Any]:
    """What `detokenize` has to be told of the images' size; InputError for one that the tokenizer cannot take."""
    if isinstance(tokenizer, Resized):
        check_images(images)
        return {}
    home = (tokenizer.image_size, tokenizer.image_size)
    if images.shape[-2:] == home or not isinstance(tokenizer, CVQTokenizer) or tokenizer.resampler is None:
        check_fit(images, tokenizer.image_size)
        return {}
    check_images(images)
    return {"size": tokenizer.check_output_size((images.shape[2], images.shape[3]), "images", worked_at=True)}


class _Gathered:
    """What was measured so far of one prefix length."""

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self.values: dict[str, list[Tensor]] = {}
        self.features: list[Tensor] = []
        self.usage = CodebookUsage(codebook_size, per_position=False)

    def add(self, decoded: Tensor, originals: Tensor, ids: Tensor, measures: Measures) -> None:
        """Measure some images."""
        for name, metric in measures.pairs.items():
            self.values.setdefault(name, []).append(_checked(name, metric(decoded, originals), len(decoded)))
        if measures.space is not None:
            self.features.append(measures.space.features(decoded))
        self.usage.update(ids)

    def quality(self, k: int, pixels: int, originals: Tensor | None, measures: Measures, seed: int) -> PrefixQuality:
        """Of all images so far; originals: their features."""
        per_image = {name: torch.cat(parts) for name, parts in self.values.items()}
        distances: dict[str, float] = {}
        if measures.space is not None and originals is not None:
            distances = measures.distances(torch.cat(self.features), originals)
        return PrefixQuality(
            num_tokens=k,
            num_bytes=num_bytes(k, self.codebook_size),
            bits_per_pixel=bits_for(k, self.codebook_size) / pixels,
            per_image=per_image,
            intervals={name: mean_with_interval(values, seed) for name, values in per_image.items()},
            distances=distances,
            usage=self.usage.result(),
        )


def _checked(name: str, values: Any, count: int) -> Float64[Tensor, " n"]:
    """What a metric gave, a finite number an image; InputError that names the metric for anything else."""
    if not isinstance(values, Tensor) or values.shape != (count,):
        given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"metric {name!r}: expected a number for each of {count} images, ({count},), got {given}")
    if not bool(values.isfinite().all()):
        raise NotFiniteError(f"metric {name!r}: it is NaN or infinite for an image; are its network's weights damaged?")
    return values.cpu().double()


def bits_for(num_tokens: int, codebook_size: int) -> float:
    """Information in num_tokens ids of N codes: num_tokens * log2 N bits."""
    return num_tokens * math.log2(codebook_size)


def _prefix_lengths(num_tokens: int, prefixes: Sequence[int] | None) -> list[int]:
    if prefixes is None:
        return prefix_lengths(num_tokens)
    if not prefixes:
        raise InputError(f"prefixes: expected numbers of tokens in 1..{num_tokens}, got none")
    return sorted({check_whole_number("prefixes", k, 1, num_tokens, what="numbers of tokens") for k in prefixes})
