"""What ails a tokenizer: the figures of its codebook and of each of its tokens, over a set of images.

images -> features z and ids, 8 at a time -> `Observation` (counts and sums) -> `diagnose` -> `DoctorReport`

    n images   K tokens an image (= C on the channel axis)   N codes of D numbers

What the figures mean is said in findings.py; they are shown in pictures.py and page.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from channelvq.data.stream import distinct
from channelvq.evaluate.metrics import check_fit, psnr
from channelvq.images import normalize, to_uint8
from channelvq.lookup.equal import first_equal
from channelvq.nn.modes import CHUNK_ROWS, evaluating
from channelvq.quantize.axis import Axis, from_vectors, to_vectors
from channelvq.quantize.usage import CodebookUsage, UsageReport
from channelvq.tokenizer import CVQTokenizer

KNOCKOUT_IMAGES = 16  # K more decodings each; the mean loss of a token over 16 images is steady to some tenths of it
SAMPLED_FEATURES = 1536  # what t-SNE lays out in about ten seconds, and what can still be told apart on a picture
DUPLICATE_TOLERANCE = 0.01  # of the distance of features to their codewords: swapping such a pair changes nothing
_CONSTANT = 1e-9  # a variance below this share of the mean square is rounding: the features are all the same
_TILE = 2**22  # distances in memory at a time: 32 MiB of float64

PROTOCOL = {
    "images": "each once, however often it is given",
    "entropy": "bits, of each token position alone, coverage-adjusted (Chao and Shen 2003), at most log2 N",
    "quantization_error": "mean squared distance of features to their codewords over their unbiased variance",
    "effective_dimension": "(sum of variances)^2 / sum of their squares, over the principal directions of a position",
    "gaussian_error": "N^(-2/D), the least such error for white Gaussian features at log2 N bits (Shannon)",
    "duplicates": f"codes within {DUPLICATE_TOLERANCE} of the rms distance of features to codewords from a lower index",
    "knockout": f"mean PSNR loss over the first {KNOCKOUT_IMAGES} images with one token set to zero",
}


@dataclass(frozen=True, eq=False)
class Observation:
    """Sums over all images, in float64 on the CPU.

    counts: how often a code came at a position. errors, variances, feature_squares, code_squares: means over images
    of |z - e|^2, |z - mean z|^2 (over n - 1), |z|^2 and |e|^2 at each position. dimensions: effective ones of z.
    mean_codes: mean of e. features: some z, drawn from all images and positions, and at which position each was.
    """

    axis: Axis
    table: Float64[Tensor, "N D"]
    usage: UsageReport
    counts: Int64[Tensor, "K N"]
    errors: Float64[Tensor, " K"]
    variances: Float64[Tensor, " K"]
    dimensions: Float64[Tensor, " K"]
    feature_squares: Float64[Tensor, " K"]
    code_squares: Float64[Tensor, " K"]
    mean_codes: Float64[Tensor, "K D"]
    features: Float[Tensor, "m D"]
    feature_positions: Int64[Tensor, " m"]


@dataclass(frozen=True, eq=False)
class DoctorReport:
    """The figures of a tokenizer on a set of images; `PROTOCOL` says how each is computed.

    relative_error: of all positions together; nan for features that do not vary. position_*: one number for each token
    position: share of all codes in use, perplexity (1..N), bits (0..log2 N), relative error, effective dimension of the
    features. knockout: PSNR in dB lost without a token. dead: codes that never came. duplicates: (code, lower code that
    it repeats). feature_norm, code_norm: root mean squares over all tokens; table_norms: 5th, 50th and 95th percentile
    over all codes.
    """

    axis: Axis
    codebook_size: int
    codebook_dim: int
    num_images: int
    usage: UsageReport
    position_use: Float64[Tensor, " K"]
    position_perplexity: Float64[Tensor, " K"]
    position_bits: Float64[Tensor, " K"]
    position_errors: Float64[Tensor, " K"]
    position_dimensions: Float64[Tensor, " K"]
    relative_error: float
    knockout: Float64[Tensor, " K"]
    dead: tuple[int, ...]
    duplicates: tuple[tuple[int, int], ...]
    feature_norm: float
    code_norm: float
    table_norms: tuple[float, float, float]

    @property
    def gaussian_error(self) -> float:
        """The least relative error that log2 N bits allow for white Gaussian features of D numbers, N^(-2/D)."""
        return self.codebook_size ** (-2 / self.codebook_dim)

    @property
    def position(self) -> str:
        """What a token stands for."""
        return "channel" if self.axis == "channel" else "patch"

    def to_dict(self) -> dict[str, Any]:
        """The metrics of a result record."""
        return {
            **self.usage.to_dict(),
            "num_images": self.num_images,
            "quantization_error": self.relative_error,
            "gaussian_error": self.gaussian_error,
            "dead": list(self.dead),
            "duplicates": [list(pair) for pair in self.duplicates],
            "feature_norm": self.feature_norm,
            "code_norm": self.code_norm,
            "table_norms": list(self.table_norms),
            "positions": [
                {
                    "use": use, "perplexity": perplexity, "bits": bits, "quantization_error": error,
                    "variance_kept": 1 - error, "effective_dimension": dimension, "knockout_psnr": loss,
                }
                for use, perplexity, bits, error, dimension, loss in self.position_rows()
            ],
        }  # fmt: skip

    def position_rows(self) -> list[tuple[float, float, float, float, float, float]]:
        """(use, perplexity, bits, relative error, effective dimension, knock-out loss in dB) of each position."""
        columns = (
            self.position_use, self.position_perplexity, self.position_bits, self.position_errors,
            self.position_dimensions, self.knockout,
        )  # fmt: skip
        return [(a, b, c, d, e, f) for a, b, c, d, e, f in torch.stack(columns, dim=1).tolist()]


def examine(
    tokenizer: CVQTokenizer, images: UInt8[Tensor, "n 3 h w"], progress: Callable[[int, int], None] | None = None
) -> tuple[DoctorReport, Observation]:
    """All figures of a tokenizer on images of its size, and the sums they come from; raises InputError.

    A picture that comes again is left out: copies say nothing more of a codebook, and would make it look collapsed.
    progress: told (parts done, parts in all), a part being some images, or a token's knock-out.
    """
    check_fit(images, tokenizer.image_size)
    images = images[distinct(images.cpu())]
    done, total = 0, math.ceil(len(images) / CHUNK_ROWS) + tokenizer.num_tokens

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    observation = observe(tokenizer, images, tick)
    return diagnose(observation, knockout_loss(tokenizer, images[:KNOCKOUT_IMAGES], tick)), observation


@torch.no_grad()
def observe(
    tokenizer: CVQTokenizer, images: UInt8[Tensor, "n 3 h w"], tick: Callable[[], None] = lambda: None
) -> Observation:
    """Tokenize each image once; the ids are those of `tokenize`. Raises InputError for images of another size.

    tick: called after every 8 images.
    """
    check_fit(images, tokenizer.image_size)
    axis, usage = tokenizer.config.axis, CodebookUsage(tokenizer.codebook_size)
    sums = [torch.zeros(tokenizer.num_tokens, dtype=torch.float64) for _ in range(3)]
    dim = tokenizer.config.codebook_dim
    z_sum, e_sum = torch.zeros(2, tokenizer.num_tokens, dim, dtype=torch.float64)
    moments = torch.zeros(tokenizer.num_tokens, dim, dim, dtype=torch.float64)
    sampled = _sample(len(images), tokenizer.num_tokens)
    features: list[Tensor] = []
    for start in range(0, len(images), CHUNK_ROWS):
        latents = tokenizer.latents(normalize(images[start : start + CHUNK_ROWS]))
        with evaluating(tokenizer):
            quantized = tokenizer.quantizer(latents)
        usage.update(quantized.indices)
        z, e = (to_vectors(maps, axis) for maps in (latents.float(), quantized.z_q))
        z, e = (vectors.double().cpu() for vectors in (tokenizer.quantizer.quantizer.targets(z, e), e))
        for total, square in zip(sums, ((z - e).square(), z.square(), e.square()), strict=True):
            total += square.sum(dim=(0, 2))
        z_sum += z.sum(dim=0)
        moments += torch.bmm(z.permute(1, 2, 0), z.transpose(0, 1))
        e_sum += e.sum(dim=0)
        # Rows of this chunk among the sampled ones, as numbers image * K + position.
        here = sampled[sampled // z.shape[1] // CHUNK_ROWS == start // CHUNK_ROWS] - start * z.shape[1]
        features.append(z.flatten(0, 1)[here].float())
        tick()
    errors, z_squares, e_squares = (total / len(images) for total in sums)
    variances = z_squares - (z_sum / len(images)).square().sum(dim=1)
    variances *= len(images) / max(1, len(images) - 1)  # unbiased: else few images make every token look worse
    assert usage.position_counts is not None
    return Observation(
        axis=axis,
        table=tokenizer.quantizer.codes().detach().double().cpu(),
        usage=usage.result(),
        counts=usage.position_counts,
        errors=errors,
        variances=torch.where(variances > _CONSTANT * z_squares, variances, 0.0),
        dimensions=effective_dimensions(moments / len(images), z_sum / len(images)),
        feature_squares=z_squares,
        code_squares=e_squares,
        mean_codes=e_sum / len(images),
        features=torch.cat(features),
        feature_positions=sampled % tokenizer.num_tokens,
    )


def diagnose(seen: Observation, knockout: Float64[Tensor, " K"]) -> DoctorReport:
    """The figures that follow from an observation; knockout: of `knockout_loss`."""
    size, dim = seen.table.shape
    total = seen.counts.sum(dim=0)
    tolerance = DUPLICATE_TOLERANCE * seen.errors.mean().sqrt().item()
    first = near_duplicates(seen.table, tolerance)
    repeated = (first != torch.arange(size)).nonzero().flatten().tolist()
    norms = seen.table.norm(dim=1).quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    return DoctorReport(
        axis=seen.axis,
        codebook_size=size,
        codebook_dim=dim,
        num_images=int(seen.counts[0].sum()),
        usage=seen.usage,
        position_use=(seen.counts > 0).double().mean(dim=1),
        position_perplexity=torch.tensor(seen.usage.position_bits, dtype=torch.float64).exp2(),
        position_bits=entropy_bits(seen.counts),
        position_errors=_ratio(seen.errors, seen.variances),
        position_dimensions=seen.dimensions,
        relative_error=_ratio(seen.errors.sum(), seen.variances.sum()).item(),
        knockout=knockout,
        dead=tuple((total == 0).nonzero().flatten().tolist()),
        duplicates=tuple((code, int(first[code])) for code in repeated),
        feature_norm=seen.feature_squares.mean().sqrt().item(),
        code_norm=seen.code_squares.mean().sqrt().item(),
        table_norms=(norms[0], norms[1], norms[2]),
    )


def effective_dimensions(moments: Float64[Tensor, "K D D"], means: Float64[Tensor, "K D"]) -> Float64[Tensor, " K"]:
    """(tr S)^2 / tr S^2 of the covariances S = moments - mean mean^T: D for white features, 1 on a line; 0 for none."""
    covariances = moments - means[:, :, None] * means[:, None, :]
    traces = covariances.diagonal(dim1=1, dim2=2).sum(1).clamp(min=0)
    real = traces > _CONSTANT * moments.diagonal(dim1=1, dim2=2).sum(1)
    return torch.where(real, traces.square() / covariances.square().sum((1, 2)).clamp(min=1e-300), 0.0)


def entropy_bits(counts: Int64[Tensor, "K N"]) -> Float64[Tensor, " K"]:
    """Entropy in bits of the distribution that each row of counts was drawn from, in [0, log2 N].

    Chao and Shen 2003 (Environmental and Ecological Statistics 10): a row sees far fewer tokens than there are codes,
    and counting alone would find at most log2 of their number. With n tokens, f codes seen once, and
    p = (1 - f/n) count/n: H = -sum p log p / (1 - (1 - p)^n). f = n counts as n - 1, lest nothing is left.
    """
    # Row by row and only what came: K x N numbers of float64 would be large.
    nats = torch.stack([_entropy_nats(row[row > 0].double()) for row in counts])
    return (nats / math.log(2)).clamp(0.0, math.log2(counts.shape[1]))


def _entropy_nats(counts: Float64[Tensor, " m"]) -> Float64[Tensor, ""]:
    n, once = counts.sum(), (counts == 1).sum()
    p = (1 - torch.where(once == n, n - 1, once) / n) * counts / n
    return (torch.special.entr(p) / (1 - (1 - p).pow(n))).sum()


def near_duplicates(table: Float64[Tensor, "N D"], tolerance: float) -> Int64[Tensor, " N"]:
    """For each code the lowest index of a code that is equal or no further than `tolerance` away (else its own)."""
    first = first_equal(table.float())
    if tolerance <= 0:
        return first
    table = table - table.mean(dim=0)  # the products below lose digits to a common offset
    half = table.square().sum(dim=1) / 2
    size = len(table)
    order = torch.arange(size)
    for start in range(0, size, max(1, _TILE // size)):
        rows = order[start : start + max(1, _TILE // size)]
        end = int(rows[-1]) + 1
        squares = 2 * (half[rows, None] + half[:end] - table[rows] @ table[:end].T)
        close = (squares <= tolerance**2) & (order[:end] < rows[:, None])
        lowest = torch.where(close, order[:end], size).amin(dim=1)
        first[rows] = torch.minimum(first[rows], lowest)
    return first


@torch.no_grad()
def knockout_loss(
    tokenizer: CVQTokenizer, images: UInt8[Tensor, "n 3 h w"], tick: Callable[[], None] = lambda: None
) -> Float64[Tensor, " K"]:
    """PSNR in dB that the images lose on average without each token alone (its codeword set to zero).

    tick: called after each token.
    """
    with evaluating(tokenizer):
        codes = knockout_codes(tokenizer, images)
        complete = _psnr(tokenizer, codes, images)
        losses = []
        for position in range(tokenizer.num_tokens):
            less = codes.clone()
            less[:, position] = 0.0
            losses.append((complete - _psnr(tokenizer, less, images)).mean())
            tick()
    return torch.stack(losses)


def knockout_codes(tokenizer: CVQTokenizer, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n K D"]:
    """Codewords of the images' tokens."""
    ids = tokenizer.tokenize(normalize(images))
    return to_vectors(tokenizer.ids_to_latents(ids), tokenizer.config.axis)


def decode_codes(tokenizer: CVQTokenizer, codes: Float[Tensor, "n K D"]) -> UInt8[Tensor, "n 3 h w"]:
    """Images of codewords, or of any vectors in their place."""
    side = tokenizer.config.latent_size
    maps = from_vectors(codes, tokenizer.config.axis, (side, side))
    return torch.cat([to_uint8(tokenizer.decode(part)) for part in maps.split(CHUNK_ROWS)]).cpu()


def _psnr(tokenizer: CVQTokenizer, codes: Tensor, images: Tensor) -> Tensor:
    return psnr(decode_codes(tokenizer, codes), images.cpu())


def _sample(num_images: int, num_tokens: int) -> Int64[Tensor, " m"]:
    """Ascending numbers image * K + position, drawn from all of them."""
    total = num_images * num_tokens
    if total <= SAMPLED_FEATURES:
        return torch.arange(total)
    return torch.randint(total, (SAMPLED_FEATURES,), generator=torch.Generator().manual_seed(0)).unique()


def _ratio(errors: Float64[Tensor, "..."], variances: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    return torch.where(variances > 0, errors / variances, float("nan"))
