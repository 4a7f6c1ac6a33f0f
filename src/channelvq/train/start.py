"""Where a linear coder (nn/linear.py) starts: principal components of the images, dealt out to the tokens.

channel axis: components of whole images, in falling order of variance. By reverse water-filling (principal.py) they
are worth tokens * log2 N bits together; a token takes components until it has its log2 N: a few large ones first, many
small ones last.
patch axis: components of each patch by itself, at the place where the patch is: every token has its own log2 N bits.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from channelvq.distributed import broadcast_from_main, rank
from channelvq.errors import InputError
from channelvq.images import normalize
from channelvq.nn.linear import LinearEncoder, LinearMap
from channelvq.nn.separable import SeparableMap
from channelvq.principal import ALL_ALIKE, above_water, directions, signed, water_level
from channelvq.quantize.residual import ResidualSimVQCodebook, ResidualSimVQConfig
from channelvq.quantize.tokenwise import TokenwiseSimVQConfig
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from channelvq.train.progress import tell
from channelvq.train.start_separable import fit_separable, largest, of_patches

ROWS = 512  # images in float32 at once
PASSES = 4
SPARE = 1.1  # directions that are followed for each that is wanted: the last ones of a subspace settle slowly


class LinearStart(NamedTuple):
    """mean (P,) of images in [-1, 1]; basis (m, P), orthonormal rows; which of them are at which slots."""

    mean: Float[Tensor, " P"]
    basis: Float[Tensor, "m P"]
    chosen: Int64[Tensor, " n"]
    slots: Int64[Tensor, " n"]


def start_linear(tokenizer: CVQTokenizer, images: Callable[[int], UInt8[Tensor, "n 3 H W"]], seed: int) -> None:
    """Fit the linear part of a tokenizer, both ways, unless it is: on rank 0, then broadcast, so that ranks agree.

    images: gives so many of the training images.
    """
    encoder = tokenizer.encoder
    if not isinstance(encoder, LinearEncoder):
        raise InputError(f"start: expected a tokenizer with model.network.kind=linear, got {type(encoder).__name__}")
    if encoder.linear.placed:
        return
    if rank() == 0:
        tell(f"start: principal components of {encoder.config.start_images} images, once")
        shown = images(encoder.config.start_images).to(tokenizer.device)
        encoder.linear.place(*_fit(encoder.linear, tokenizer.config, shown, seed))
    broadcast_from_main(encoder.linear.buffers())
    quantizer = tokenizer.quantizer.quantizer
    if isinstance(quantizer, ResidualSimVQCodebook):
        quantizer.share(encoder.linear.numbers().view(quantizer.numbers.shape))


def _fit(part: LinearMap | SeparableMap, config: CVQConfig, images: UInt8[Tensor, "n 3 H W"], seed: int) -> Any:
    """What `place` takes."""
    if isinstance(part, LinearMap):
        return fit_linear(config, images, len(part.basis), len(part.slots), seed)
    bits, most = math.log2(config.quantizer.codebook_size), _most(config)
    fitted = fit_separable(images, part, whole_grid=config.axis == "channel")
    if config.axis == "patch":
        if part.block_side != config.network.downsampling:
            raise InputError("model.network.block: on the patch axis it is the side of a patch, that of downsampling")
        if isinstance(config.quantizer, TokenwiseSimVQConfig):
            chosen, slots = of_patches(fitted, bits, min(most, len(part.slots) // config.num_tokens))
        else:  # one codebook for all patches: a number must mean the same in each
            chosen = slots = torch.arange(len(part.slots))
    else:
        order, variances = largest(fitted, len(part.slots))
        picked, slots = _dealt(config, variances, len(part.slots))
        chosen = order[picked]
    return fitted.mean, fitted.block, fitted.grid, chosen, slots


def _most(config: CVQConfig) -> int:
    """How many numbers of a token its codewords can reach."""
    quantizer = config.quantizer
    reach = quantizer.rank if isinstance(quantizer, TokenwiseSimVQConfig) else config.codebook_dim
    return min(reach, config.codebook_dim)


@torch.no_grad()
def fit_linear(
    config: CVQConfig, images: UInt8[Tensor, "n 3 H W"], components: int, slots: int, seed: int
) -> LinearStart:
    """The basis of at most `components` rows for the axis, tokens and codes of a tokenizer; slots: at most, of maps.

    Raises InputError for images that are all the same.
    """
    bits, most = math.log2(config.quantizer.codebook_size), _most(config)
    if config.axis == "patch":
        return _patch_start(images, config.latent_size, bits, min(most, components // config.num_tokens))
    mean, basis, variances = principal_components(images, components, torch.Generator().manual_seed(seed))
    chosen, places = _dealt(config, variances, slots)
    # Rows that no token has would only be stored.
    rows, chosen = chosen.unique(return_inverse=True)
    return LinearStart(mean, basis[rows], chosen, places)


def _dealt(
    config: CVQConfig, variances: Float64[Tensor, " n"], slots: int
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """(components, their slots) on the channel axis; variances: of the components, in falling order."""
    bits, dim, count = math.log2(config.quantizer.codebook_size), config.codebook_dim, config.num_tokens
    if isinstance(config.quantizer, ResidualSimVQConfig):
        shared = share_out(variances, count, bits, min(_most(config), slots // count))
        places = torch.arange(count, device=shared.device)[:, None] * dim + torch.arange(
            shared.shape[1], device=shared.device
        )
        return shared.flatten(), places.flatten()
    tokens = deal_out(variances, count, bits)
    place = torch.arange(len(tokens), device=tokens.device) - torch.searchsorted(tokens, tokens)
    kept = place < _most(config)
    return kept.nonzero()[:, 0], tokens[kept] * dim + place[kept]


def deal_out(variances: Float64[Tensor, " n"], num_tokens: int, bits: float) -> Int64[Tensor, " m"]:
    """The token of each component above the water level, in falling order of variance; `bits` are those of a token.

    A component belongs to the token in which its bits begin.
    """
    level = water_level(variances, num_tokens * bits)
    worth = (variances / level).log2().clamp(min=0) / 2
    begin = (worth.cumsum(0) - worth)[worth > 0]
    return (begin / bits).long().clamp(max=num_tokens - 1)


def share_out(variances: Float64[Tensor, " n"], num_tokens: int, bits: float, each: int) -> Int64[Tensor, "K each"]:
    """The components of each token where errors are passed on: those of which most is left.

    A token gives its bits to them by reverse water-filling and leaves of each the water level. So a large component is
    in many tokens, a little finer in each, and the first tokens alone are nearly as good as their bits allow.
    """
    left, shared = variances.clone(), []
    each = min(each, len(left))
    for _ in range(num_tokens):
        most = left.sort(descending=True, stable=True).indices[:each]
        left[most] = torch.minimum(left[most], water_level(left[most], bits))
        shared.append(most)
    return torch.stack(shared)


def principal_components(
    images: UInt8[Tensor, "n 3 H W"], count: int, generator: torch.Generator
) -> tuple[Float[Tensor, " P"], Float[Tensor, "m P"], Float64[Tensor, " m"]]:
    """(mean, orthonormal rows in falling order of variance, variances) of images in [-1, 1], P = 3 H W.

    By subspace iteration on the second moments, some images at a time: memory for the images as bytes and for a few
    bases, never (P, P). Fewer than `count` where the images have no more directions. generator: on the CPU.
    """
    count = min(count, len(images) - 1, images[0].numel())
    mean = _mean(images)
    follow = min(math.ceil(SPARE * count), images[0].numel())
    basis = torch.randn(images[0].numel(), max(1, follow), generator=generator).to(images.device)
    for _ in range(PASSES):
        basis = _moments_times(torch.linalg.qr(basis)[0], images, mean)
    basis = torch.linalg.qr(basis)[0]
    moments = (basis.T @ _moments_times(basis, images, mean)).double()
    variances, turn = directions((moments + moments.T) / 2)
    variances, turn = variances[:count], turn[:, :count]
    # Rounding leaves about 1e-7 of the largest variance in directions without any.
    real = int((variances > 1e-6 * variances[:1].clamp(min=1e-12)).sum())
    if not real:
        raise InputError(ALL_ALIKE)
    rows = torch.linalg.qr(basis @ turn[:, :real].float())[0].T
    return mean, signed(rows, 1).contiguous(), variances[:real]


def _moments_times(basis: Float[Tensor, "P m"], images: Tensor, mean: Tensor) -> Float[Tensor, "P m"]:
    """The second moments of the images about their mean, times a basis."""
    out = torch.zeros_like(basis)
    for part in _rows(images):
        out.addmm_((part - mean).T, (part - mean) @ basis, alpha=1 / len(images))
    return out


def _mean(images: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, " P"]:
    zero = torch.zeros((), dtype=torch.float64)
    return (sum((part.double().sum(0) for part in _rows(images)), zero) / len(images)).float()


def _rows(images: UInt8[Tensor, "n 3 H W"]) -> Iterator[Float[Tensor, "m P"]]:
    for part in images.split(ROWS):
        yield normalize(part).flatten(1)


def _patch_start(images: UInt8[Tensor, "n 3 H W"], side: int, bits: float, most: int) -> LinearStart:
    """Of each patch of a side x side grid its components above its own water level, `most` at most."""
    if most < 1:
        raise InputError(f"model.network.components: at least one for each of the {side * side} patches is needed")
    size, patches = images.shape[-1], side * side
    # Where the pixels of each patch are in a flat image.
    places = torch.arange(images[0].numel(), device=images.device).view(3, side, size // side, side, size // side)
    places = places.permute(1, 3, 0, 2, 4).reshape(patches, -1)
    mean = _mean(images)
    moments = torch.zeros(patches, places.shape[1], places.shape[1], device=images.device)
    for part in _rows(images):
        vectors = (part - mean)[:, places].transpose(0, 1)  # (patches, m, pixels of a patch)
        moments += vectors.transpose(1, 2) @ vectors / len(images)
    variances, columns = directions(moments.double())
    patch, place = above_water(variances.clamp(min=0), bits, 1e-6)[:, :most].nonzero(as_tuple=True)
    if not len(patch):
        raise InputError(ALL_ALIKE)
    basis = torch.zeros(len(patch), images[0].numel(), device=images.device)
    basis.scatter_(1, places[patch], columns[patch, :, place].float())
    return LinearStart(mean, basis, torch.arange(len(basis), device=images.device), place * patches + patch)
