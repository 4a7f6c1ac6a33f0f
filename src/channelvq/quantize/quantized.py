"""What every quantizer returns, and the straight-through estimator that all of them share."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass
class Quantized:
    """Result of a quantizer; unpacks as `z_q, indices, loss`.

    z_q: codewords in the shape of the input, gradients pass straight through to it. indices: int64 (B, K), or
    (B, K, S) where a token has S codes.
    losses: the named, weighted terms; `loss` is their sum.
    """

    z_q: Float[Tensor, "B ..."]
    indices: Int64[Tensor, "B K ..."]
    losses: dict[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """Sum of the terms, a scalar."""
        return sum(self.losses.values(), start=self.z_q.new_zeros(()))

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.z_q, self.indices, self.loss))


class _StraightThrough(torch.autograd.Function):
    """As torch.func wants it, so that grad, vjp, jvp and vmap pass through as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, codes: Tensor) -> Tensor:
        return codes.detach().clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass  # both derivatives are the identity in z, whatever z and the codes are

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        return None if tangents[0] is None else tangents[0].clone()


def straight_through(z: Float[Tensor, "*S"], codes: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The codewords themselves, to the bit, with the gradient passed on to z unchanged.

    The usual z + (codes - z).detach() is not codes in float32: about a third of the elements are rounded elsewhere.
    """
    if torch.compiler.is_compiling():
        return _in_graph(z, codes)
    return _StraightThrough.apply(z, codes)  # type: ignore[return-value]


# torch.compile traces no function that has a jvp (2.13).
@torch.library.custom_op("channelvq::straight_through", mutates_args=())
def _in_graph(z: Tensor, codes: Tensor) -> Tensor:
    return codes.clone()


@_in_graph.register_fake
def _(z: Tensor, codes: Tensor) -> Tensor:
    return torch.empty_like(codes)


_in_graph.register_autograd(lambda _, gradient: (gradient, None))


def mean_over_kept(error: Float[Tensor, "B K"], keep: Bool[Tensor, "B K"] | None) -> Float[Tensor, ""]:
    """Sum of the kept tokens' errors over the number of all tokens.

    Paper, nested channel dropout: the quantization loss counts the kept channels only. The denominator does not depend
    on what was dropped, so that the mean over ranks is the mean over the global batch.
    """
    return (error if keep is None else error * keep).mean()


def vq_losses(
    z: Float[Tensor, "B K D"],
    codes: Float[Tensor, "B K D"],
    keep: Bool[Tensor, "B K"] | None,
    *,
    codebook: float,
    beta: float,
) -> dict[str, Tensor]:
    """The terms ||sg[z] - e||^2, which reaches the codes alone, and beta ||z - sg[e]||^2, which reaches z alone."""
    return {
        "codebook": codebook * mean_over_kept((z.detach() - codes).square().mean(2), keep),
        "commitment": beta * mean_over_kept((z - codes.detach()).square().mean(2), keep),
    }
