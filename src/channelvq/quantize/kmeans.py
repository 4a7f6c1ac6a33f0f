"""k-means (Lloyd 1982) on the exact lookup: where a codebook starts from."""

import torch
from jaxtyping import Float
from torch import Tensor

from channelvq.quantize.nearest import nearest_codeword


@torch.no_grad()
def kmeans(
    vectors: Float[Tensor, "M D"], num_codes: int, iterations: int, generator: torch.Generator
) -> Float[Tensor, "N D"]:
    """Centres (num_codes, D) of the vectors after some Lloyd iterations from a random subset of them.

    A centre that no vector chose moves to a random vector. With fewer vectors than centres some vectors serve twice,
    moved apart by noise of a thousandth of the data's standard deviation. generator: on the CPU.
    """
    vectors = vectors.detach().float()
    centres = vectors[_draw(len(vectors), num_codes, generator).to(vectors.device)].clone()
    if len(vectors) < num_codes:
        noise = torch.randn(centres.shape, generator=generator).to(vectors.device)
        centres += 1e-3 * vectors.std() * noise
    for _ in range(iterations):
        nearest = nearest_codeword(vectors, centres)
        counts = torch.bincount(nearest, minlength=num_codes)
        sums = torch.zeros_like(centres, dtype=torch.float64).index_add_(0, nearest, vectors.double())
        empty = counts == 0
        centres = (sums / counts.clamp(min=1)[:, None]).float()
        centres[empty] = vectors[_draw(len(vectors), int(empty.sum()), generator).to(vectors.device)]
    return centres


def _draw(population: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices below `population`, without repetition as long as that is possible."""
    rounds = -(-count // population)
    order = [torch.randperm(population, generator=generator) for _ in range(max(1, rounds))]
    return torch.cat(order)[:count]
