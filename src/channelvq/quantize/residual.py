"""Tokens that pass on their errors: each quantizes what those before it left of the numbers that they share.

t_k = z_k - (codewords of earlier tokens, where they stand for the same numbers of the image)
t_k -> argmin_n ||t_k - W_k c_n|| -> e_k          maps and shared codebook as in tokenwise.py
a number of the image is the sum of all e_k that stand for it

It is residual quantization (RVQ; Zeghidour et al. 2021, arXiv 2107.03312) of the principal components, where a token
sees only the components of which most is left. A Gaussian source loses nothing by it (successive refinement: Equitz and
Cover 1991), and every prefix is nearly as good as its bits allow (docs/decisions/0018).
"""

import math
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from channelvq.config import STRICT
from channelvq.errors import InputError
from channelvq.lookup.mapped import nearest_mapped
from channelvq.quantize.quantized import Quantized, mean_over_kept, straight_through
from channelvq.quantize.tokenwise import TokenwiseSimVQCodebook, TokenwiseSimVQConfig
from channelvq.quantize.tokenwise_start import fit_codebook, fit_maps, principal_maps


@dataclass(frozen=True, config=STRICT)
class ResidualSimVQConfig(TokenwiseSimVQConfig):
    """Settings as of "simvq-tokenwise"; num_tokens must be known, and `share` says which numbers are the same ones."""

    kind: Literal["simvq-residual"] = "simvq-residual"  # type: ignore[assignment]
    power: float = 1.2
    iterations: NonNegativeInt = 2

    def build(self, dim: int, num_tokens: int | None = None) -> "ResidualSimVQCodebook":
        """The quantizer, for tokens of `dim` numbers; raises InputError where K is unknown or another one."""
        count = num_tokens or self.num_tokens
        if count is None or self.num_tokens not in (None, count):
            raise InputError(
                f"simvq-residual: num_tokens, the tokens of an image, is {self.num_tokens} in the settings and "
                f"{num_tokens} in the model; give it once"
            )
        return ResidualSimVQCodebook(replace(self, num_tokens=count), dim)


class ResidualSimVQCodebook(TokenwiseSimVQCodebook):
    """N codewords for each of K tokens, W_k c_n, for what the tokens before left over."""

    numbers: Tensor
    copies: Tensor

    def __init__(self, config: ResidualSimVQConfig, dim: int) -> None:
        super().__init__(config, dim)
        assert config.num_tokens is not None
        numbers = torch.arange(config.num_tokens * dim).view(config.num_tokens, dim)
        self.register_buffer("numbers", numbers)
        self.register_buffer("copies", torch.ones(config.num_tokens, dim))

    def share(self, numbers: Int64[Tensor, "K D"]) -> None:
        """Say which number of the image each number of a token is: equal entries are one number, refined in turn.

        Raises InputError where a token has one twice.
        """
        if numbers.shape != self.numbers.shape:
            raise InputError(f"share: expected {tuple(self.numbers.shape)}, got {tuple(numbers.shape)}")
        # From 0 without gaps, so that what is spent takes no more memory than there are numbers.
        _, dense, counts = numbers.unique(return_inverse=True, return_counts=True)
        if any(len(row.unique()) < len(row) for row in dense):
            raise InputError("share: a token has the same number twice; a token holds each number at most once")
        self.numbers.copy_(dense)
        self.copies.copy_(counts[dense])

    def _quantize(self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None) -> Quantized:
        with torch.no_grad():
            indices, codes, left, total = self._encode(z)
        product = torch.einsum("bkr,kdr->bkd", self.basis[indices], self.weight)
        missed = (left - straight_through(product, codes)).square()
        # The encoder answers for what is left of a number in the end, once: the early tokens' errors are not its fault.
        last = (z - total).square() / self.copies
        losses = {
            "codebook": self.config.codebook_weight * mean_over_kept(missed.mean(2), keep),
            "commitment": self.config.beta * mean_over_kept(last.mean(2), keep),
        }
        # A number that stands in m tokens gets the gradient of the image m times: a share of it each.
        return Quantized(straight_through(z / self.copies, codes), indices, losses)

    def targets(self, z: Float[Tensor, "B K D"], codes: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        """What the tokens before left of each token's numbers."""
        spent, left = z.new_zeros(z.shape[0], int(self.numbers.max()) + 1), []
        for numbers, token, code in zip(self.numbers, z.unbind(1), codes.unbind(1), strict=True):
            left.append(token - spent[:, numbers])
            spent.index_add_(1, numbers, code.to(spent.dtype))
        return torch.stack(left, 1)

    def _encode(self, z: Float[Tensor, "B K D"]) -> tuple[Int64[Tensor, "B K"], Tensor, Tensor, Tensor]:
        """(indices, codewords, what earlier tokens left of each token's numbers, what all of them give of these)."""
        spent = z.new_zeros(z.shape[0], int(self.numbers.max()) + 1)
        indices, codes, left = [], [], []
        for k, numbers in enumerate(self.numbers):
            left.append(z[:, k] - spent[:, numbers])
            indices.append(nearest_mapped(left[-1][:, None], self.weight[k : k + 1], self.basis))
            codes.append(self._codes_of(indices[-1], slice(k, k + 1)))
            spent.index_add_(1, numbers, codes[-1][:, 0].to(spent.dtype))
        return torch.cat(indices, 1), torch.cat(codes, 1), torch.stack(left, 1), spent[:, self.numbers]

    def _place(self, vectors: Float[Tensor, "M D"], generator: torch.Generator) -> None:
        z, codebook = vectors.unflatten(0, (-1, len(self.weight))), self.basis.float()
        bits, rounds = math.log2(self.codebook_size), self.config.iterations
        for i in range(max(1, rounds)):
            spent = z.new_zeros(z.shape[0], int(self.numbers.max()) + 1)
            left, indices = torch.empty_like(z), torch.empty(z.shape[:2], dtype=torch.int64, device=z.device)
            for k, numbers in enumerate(self.numbers):
                left[:, k] = z[:, k] - spent[:, numbers]
                token = left[:, k : k + 1]
                maps = self.weight[k : k + 1] if i else principal_maps(token, self.rank, bits)
                for _ in range(min(rounds, 1 if i else 2)):
                    maps = fit_maps(token, codebook, nearest_mapped(token, maps, codebook), maps)
                indices[:, k : k + 1] = nearest_mapped(token, maps, codebook)
                self.weight[k : k + 1] = maps
                spent.index_add_(1, numbers, codebook[indices[:, k]] @ maps[0].T)
            if i + 1 < rounds:
                codebook = fit_codebook(left, self.weight, codebook, indices)
        self.basis.copy_(codebook)
