"""Orders of a tokenizer's channels: what a prefix holds when nested dropout has not decided it.

n images, C channels, h x w the side of a map. An order is a permutation of 0..C-1, the most important channel first.
"""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor, nn

from channelvq.errors import InputError
from channelvq.evaluate.metrics import psnr
from channelvq.images import normalize, to_uint8
from channelvq.nn.conv import ConvDecoder, ConvEncoder
from channelvq.tokenizer import CVQTokenizer

ROWS = 64


@torch.no_grad()
def quantized_maps(tokenizer: CVQTokenizer, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n C s s"]:
    """The codeword that stands for each channel of each image."""
    return torch.cat([tokenizer.ids_to_latents(tokenizer.tokenize(normalize(part))) for part in images.split(ROWS)])


def by_energy(maps: Float[Tensor, "n C s s"]) -> Int64[Tensor, " C"]:
    """Largest mean square first."""
    return maps.square().mean((0, 2, 3)).argsort(descending=True, stable=True)


def by_variance(maps: Float[Tensor, "n C s s"]) -> Int64[Tensor, " C"]:
    """What varies most from image to image first: the mean map of a channel tells nothing of an image."""
    return (maps - maps.mean(0)).square().mean((0, 2, 3)).argsort(descending=True, stable=True)


@torch.no_grad()
def greedy(
    tokenizer: CVQTokenizer, maps: Float[Tensor, "n C s s"], images: UInt8[Tensor, "n 3 h w"]
) -> Int64[Tensor, " C"]:
    """Each time the channel that lowers the squared error of the decoded images most; C^2 / 2 decodings of all images.

    Channels not yet chosen are at their mean map.
    """
    target, mean = normalize(images), maps.mean(0)
    current = mean.expand_as(maps).clone()
    order: list[int] = []
    left = list(range(maps.shape[1]))
    while left:
        errors = [_error(tokenizer, _with(current, maps, channel), target) for channel in left]
        best = left.pop(int(torch.tensor(errors).argmin()))
        current[:, best] = maps[:, best]
        order.append(best)
    return torch.tensor(order)


def _with(current: Tensor, maps: Tensor, channel: int) -> Tensor:
    changed = current.clone()
    changed[:, channel] = maps[:, channel]
    return changed


def _error(tokenizer: CVQTokenizer, maps: Tensor, target: Tensor) -> float:
    return float((_decoded(tokenizer, maps) - target).square().mean())


def _decoded(tokenizer: CVQTokenizer, maps: Tensor) -> Tensor:
    return torch.cat([tokenizer.decode(part) for part in maps.split(ROWS)]).clamp(-1, 1)


@torch.no_grad()
def prefix_psnr(
    tokenizer: CVQTokenizer,
    maps: Float[Tensor, "n C s s"],
    images: UInt8[Tensor, "n 3 h w"],
    order: Int64[Tensor, " C"],
    lengths: Sequence[int],
    fill: Float[Tensor, "C s s"],
) -> Float64[Tensor, "k n"]:
    """PSNR of each image from the first channels of an order, for each length; the others are at `fill`.

    maps: of `quantized_maps`.
    """
    rows = []
    for length in lengths:
        shown = fill.expand_as(maps).clone()
        shown[:, order[:length]] = maps[:, order[:length]]
        rows.append(psnr(to_uint8(_decoded(tokenizer, shown)), images))
    return torch.stack(rows)


@torch.no_grad()
def permuted(tokenizer: CVQTokenizer, order: Int64[Tensor, " C"]) -> CVQTokenizer:
    """A tokenizer whose k-th token is token order[k] of the given one; from all tokens it makes the same images.

    Raises InputError for what is not a permutation and for networks that are not convolutional.
    """
    config, encoder, decoder = tokenizer.config, tokenizer.encoder, tokenizer.decoder
    if config.axis != "channel" or not isinstance(encoder, ConvEncoder) or not isinstance(decoder, ConvDecoder):
        raise InputError("permuted: only a channel-wise tokenizer with convolutional networks has channels to reorder")
    if sorted(order.tolist()) != list(range(config.latent_channels)):
        raise InputError(f"permuted: expected each of 0..{config.latent_channels - 1} once, got {order.tolist()}")
    other = copy.deepcopy(tokenizer)
    last = cast(nn.Conv2d, cast(ConvEncoder, other.encoder).layers[-1])
    first = cast(nn.Conv2d, cast(ConvDecoder, other.decoder).layers[0])
    last.weight.copy_(last.weight[order])
    assert last.bias is not None
    last.bias.copy_(last.bias[order])
    first.weight.copy_(first.weight[:, order])
    return other
