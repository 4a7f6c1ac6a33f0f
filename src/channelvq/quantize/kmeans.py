"""k-means (Lloyd 1982) on the exact lookup: where a codebook starts from."""

import warnings

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from channelvq.errors import InputError
from channelvq.lookup.equal import first_equal
from channelvq.lookup.nearest import nearest_codeword

PART = 2**18  # vectors' numbers summed in float64 at once


class FewVectorsWarning(UserWarning):
    """There are fewer distinct vectors than codes, so some codes cannot come into use."""


@torch.no_grad()
def kmeans(
    vectors: Float[Tensor, "M D"], num_codes: int, iterations: int, generator: torch.Generator
) -> Float[Tensor, "N D"]:
    """Centres (num_codes, D) of the vectors after some Lloyd iterations from a random subset of them.

    No two centres start equal: equal centres would tie for ever and the later one never win. So distinct vectors are
    drawn first, and what repeats is moved aside by noise of a thousandth of the data's standard deviation. A centre
    that no vector chose moves to a random vector by the same rule. With no more distinct vectors than centres every
    vector has its own centre, nothing can improve, and a FewVectorsWarning says so where they are fewer.
    generator: on the CPU. Raises InputError without vectors.
    """
    if len(vectors) == 0:
        raise InputError("kmeans: no vectors were given, at least one is needed to place the centres")
    vectors = vectors.detach().float()
    first = first_equal(vectors)
    distinct = int((first == torch.arange(len(first), device=first.device)).sum())
    if distinct < num_codes:
        message = (
            f"kmeans: {distinct:,} distinct vectors for {num_codes:,} codes; at most {distinct:,} codes come into "
        )
        message += "use: give more vectors or fewer codes"
        warnings.warn(message, FewVectorsWarning, stacklevel=3)
    noise = _noise_size(vectors)
    centres = _part_twins(vectors[_draw(first, num_codes, generator)], noise, generator)
    for _ in range(iterations if distinct > num_codes else 0):
        nearest = nearest_codeword(vectors, centres)
        counts = torch.bincount(nearest, minlength=num_codes)
        empty = counts == 0
        centres = (_sums(vectors, nearest, num_codes) / counts.clamp(min=1)[:, None]).float()
        if empty.any():
            centres[empty] = vectors[_draw(first, int(empty.sum()), generator)]
        centres = _part_twins(centres, noise, generator)
    return centres


def _sums(vectors: Tensor, nearest: Tensor, num_codes: int) -> Float[Tensor, "N D"]:
    """Sum of the vectors of every centre, in float64."""
    sums = torch.zeros(num_codes, vectors.shape[1], dtype=torch.float64, device=vectors.device)
    size = max(1, PART // vectors.shape[1])
    for part, at in zip(vectors.split(size), nearest.split(size), strict=True):
        sums.index_add_(0, at, part.double())
    return sums


def _noise_size(vectors: Tensor) -> float:
    """A thousandth of the standard deviation, or of the numbers themselves where they are constant."""
    spread, largest = float(vectors.std(correction=0)), float(vectors.abs().amax())
    # The second keeps the noise above the rounding of float32 next to large numbers.
    return max(1e-3 * spread, 1e-6 * largest) if spread > 0 else 1e-3 * largest or 1e-3


def _draw(first: Int64[Tensor, " M"], count: int, generator: torch.Generator) -> Int64[Tensor, " N"]:
    """`count` of the vectors, in random order and, as long as that is possible, no two of them equal."""
    chosen, wanted = [first[:0]], count
    while wanted > 0:
        order = first[torch.randperm(len(first), generator=generator).to(first.device)]
        place = torch.arange(len(order), device=order.device)
        earliest = torch.full_like(place, len(order)).scatter_reduce_(0, order, place, "amin")
        chosen.append(order[earliest[order] == place][:wanted])
        wanted -= len(chosen[-1])
    return torch.cat(chosen)


def _part_twins(centres: Tensor, noise: float, generator: torch.Generator) -> Float[Tensor, "N D"]:
    """Moves every centre that repeats an earlier one aside; the earlier stays, so no vector gets further away."""
    order = torch.arange(len(centres), device=centres.device)
    twins = (first_equal(centres) != order).nonzero()[:, 0]
    while len(twins):
        moves = torch.randn(len(twins), centres.shape[1], dtype=torch.float32, generator=generator).to(centres.device)
        centres = centres.index_add(0, twins, noise * moves)
        # Few numbers lie within reach of the noise where D is small: what met again goes further.
        twins, noise = (first_equal(centres) != order).nonzero()[:, 0], 2 * noise
    return centres
