"""The softmax of every token over all codes, some tokens at a time: IBQ and LFQ need its sums, nobody holds all of it.

s = (z E^T - b) / tau,   p = softmax(s)                  b_i = |e_i|^2 / 2 where codes are ordered by distance, else 0
found: p V and H(p) of each token, and the sum of p over the tokens, each times its weight
backward: r = g_mixed V^T + w g_total - g_entropy log p;  dL/ds = p (r - <p, r>);  p is computed anew

A tile of (tokens, N) stays in the cache of a CPU, where a dozen passes over all of it would each wait for memory.
"""

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 2**18  # probabilities at once: 1 MiB of float32
TILE_CUDA = 2**25
FEWEST = 32  # tokens at once, however many codes: a product with fewer waits for the table


class SoftCodes(NamedTuple):
    """mixed: p V. entropy: H(p) of each token in nats. weights: 1 where it is kept, else 0. total: sum of kept p."""

    mixed: Float[Tensor, "B K V"]
    entropy: Float[Tensor, " M"]
    weights: Float[Tensor, " M"]
    total: Float[Tensor, " N"]


def soft_codes(
    z: Float[Tensor, "B K D"],
    table: Float[Tensor, "N D"],
    values: Float[Tensor, "N V"],
    tau: float | Tensor,
    keep: Bool[Tensor, "B K"] | None,
    *,
    by_distance: bool = False,
) -> SoftCodes:
    """The softmax over the codes of `table` at temperature `tau`, reduced; gradients go to z and table alone.

    by_distance: the likeliest code is the nearest one, not the one of the largest product. tau may be changed in place
    before the backward pass.
    """
    rows, tau = z.flatten(0, 1), torch.as_tensor(tau, dtype=z.dtype, device=z.device).clone()
    weights = z.new_ones(len(rows)) if keep is None else keep.flatten().to(z.dtype)
    sums = _SoftCodes.apply(rows, table, values.detach(), tau, weights, by_distance)
    mixed, entropy, total = cast(tuple[Tensor, Tensor, Tensor], sums)
    return SoftCodes(mixed.view(*z.shape[:2], -1), entropy, weights, total)


class _SoftCodes(torch.autograd.Function):
    @staticmethod
    def forward(
        z: Tensor, table: Tensor, values: Tensor, tau: Tensor, weights: Tensor, by_distance: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        bias = _bias(table, by_distance)
        mixed, entropy = z.new_empty(len(z), values.shape[1]), z.new_empty(len(z))
        total = z.new_zeros(len(table))
        for rows in _tiles(len(z), table):
            log_p = _log_p(z[rows], table, bias, tau)
            p = log_p.exp()
            torch.mm(p, values, out=mixed[rows])
            total.addmv_(p.T, weights[rows])
            entropy[rows] = -log_p.mul_(p).sum(1)
        return mixed, entropy, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.by_distance = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        g_mixed, g_entropy, g_total = grads
        z, table, values, tau, weights = ctx.saved_tensors
        bias = _bias(table, ctx.by_distance)
        g_z = torch.empty_like(z) if ctx.needs_input_grad[0] else None
        g_table = torch.zeros_like(table) if ctx.needs_input_grad[1] else None
        g_bias = torch.zeros_like(g_total)
        for rows in _tiles(len(z), table):
            log_p = _log_p(z[rows], table, bias, tau)
            p = log_p.exp()
            r = torch.addr(g_mixed[rows] @ values.T, weights[rows], g_total)
            r.addcmul_(log_p, g_entropy[rows, None], value=-1)
            mean = torch.mul(p, r, out=log_p).sum(1, keepdim=True)
            g_s = r.sub_(mean).mul_(p).div_(tau)
            if g_z is not None:
                torch.mm(g_s, table, out=g_z[rows])
            if g_table is not None:
                g_table.addmm_(g_s.T, z[rows])
                g_bias += g_s.sum(0)
        if g_table is not None and ctx.by_distance:
            g_table.addcmul_(g_bias[:, None], table, value=-1)
        return g_z, g_table, None, None, None, None


def _tiles(num_tokens: int, table: Tensor) -> list[slice]:
    size = max(FEWEST, (TILE_CUDA if table.is_cuda else TILE) // len(table))
    return [slice(begin, begin + size) for begin in range(0, num_tokens, size)]


def _bias(table: Tensor, by_distance: bool) -> Tensor:
    return table.square().sum(1) / -2 if by_distance else table.new_zeros(())


def _log_p(z: Tensor, table: Tensor, bias: Tensor, tau: Tensor) -> Tensor:
    return torch.log_softmax(torch.addmm(bias, z, table.T).div_(tau), dim=1)
