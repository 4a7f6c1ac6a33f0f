"""Where the maps of `tokenwise` start: principal directions of each token, bits by reverse water-filling.

z (B, K, D) -> second moments of each token -> directions and variances lambda_i of each
W_k = directions with lambda_i above the water level of log2 N bits, each times sqrt(lambda_i);  c = sign(g) |g|^power
then rounds of: nearest codewords; W_k by least squares; c by least squares over all tokens that chose it
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from channelvq.errors import InputError
from channelvq.lookup.mapped import nearest_mapped
from channelvq.principal import above_water, directions, signed

PART = 4096  # codewords solved for at once
# Of the curvature that an average codeword has: a codeword that few tokens chose stays near where it was.
STILL = 0.05


def random_codebook(size: int, rank: int, power: float, generator: torch.Generator) -> Float[Tensor, "N r"]:
    """sign(g) |g|^power of Gaussian g; generator: on the CPU."""
    g = torch.randn(size, rank, device="cpu", generator=generator)
    return g.sign() * g.abs() ** power


@torch.no_grad()
def place_maps(
    z: Float[Tensor, "B K D"], codebook: Float[Tensor, "N r"], iterations: int
) -> tuple[Float[Tensor, "K D r"], Float[Tensor, "N r"]]:
    """Maps (K, D, r) of the codewords for tokens like z, and the codewords, both improved in `iterations` rounds.

    The mean squared error of the tokens falls with each round but for what keeps rare codewords still. Raises
    InputError without images.
    """
    if len(z) == 0:
        raise InputError("start: no images were given, at least one is needed to place the maps")
    maps = principal_maps(z, codebook.shape[1], math.log2(len(codebook)))
    for i in range(iterations):
        indices = nearest_mapped(z, maps, codebook)
        maps = fit_maps(z, codebook, indices, maps)
        if i:  # the first maps are those of another codebook's scale
            codebook = fit_codebook(z, maps, codebook, indices)
    return maps, codebook


def principal_maps(z: Float[Tensor, "B K D"], rank: int, bits: float) -> Float[Tensor, "K D r"]:
    """Of each token the principal directions above its water level, the largest first, times sqrt(variance)."""
    moments = torch.stack([token.double().T @ token.double() / len(token) for token in z.unbind(1)])
    variances, columns = directions(moments)
    variances = variances.clamp(min=0)
    maps = columns * (variances * above_water(variances, bits, 1e-9)).sqrt()[:, None]
    return signed(maps, 1)[:, :, :rank].float()


def fit_maps(
    z: Float[Tensor, "B K D"], codebook: Float[Tensor, "N r"], indices: Int64[Tensor, "B K"], maps: Tensor
) -> Float[Tensor, "K D r"]:
    """W_k of least squared error for the chosen codewords, drawn a little towards the W_k of before."""
    table = codebook.double()
    ridge = 1e-3 * len(z) * table.square().mean()
    eye = torch.eye(codebook.shape[1], dtype=torch.float64, device=z.device)
    fitted = []
    for k, before in enumerate(maps.double()):  # token by token: all of the data at once in float64 would be much
        chosen = table[indices[:, k]]
        right = chosen.T @ z[:, k].double() + ridge * before.T
        fitted.append(torch.linalg.solve(chosen.T @ chosen + ridge * eye, right).T)
    return torch.stack(fitted).float()


def fit_codebook(
    z: Float[Tensor, "B K D"], maps: Float[Tensor, "K D r"], codebook: Float[Tensor, "N r"], indices: Tensor
) -> Float[Tensor, "N r"]:
    """c_n of least squared error over all tokens that chose it; (sum W^T W + still) c = sum W^T z + still c_before."""
    size, rank = codebook.shape
    wide = maps.double()
    grams = (wide.transpose(1, 2) @ wide).flatten(1)  # (K, r * r)
    counts = torch.zeros(len(maps), size, dtype=torch.float64, device=z.device)
    right = torch.zeros(size, rank, dtype=torch.float64, device=z.device)
    for k, chosen in enumerate(indices.unbind(1)):
        counts[k] = torch.bincount(chosen, minlength=size)
        right.index_add_(0, chosen, z[:, k].double() @ wide[k])
    eye = torch.eye(rank, dtype=torch.float64, device=z.device)
    curvature = counts.sum(1) @ grams / size
    still = STILL * curvature.view(rank, rank).diagonal().mean().clamp(min=1e-300)
    parts = [
        torch.linalg.solve((count.T @ grams).unflatten(1, (rank, rank)) + still * eye, (b + still * c)[:, :, None])
        for count, b, c in zip(counts.split(PART, 1), right.split(PART), codebook.double().split(PART), strict=True)
    ]
    return torch.cat(parts)[:, :, 0].float()
