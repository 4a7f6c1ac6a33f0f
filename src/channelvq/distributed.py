"""Processes that train together: their number, which of them this one is, and what they tell each other."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed


def num_ranks() -> int:
    """Processes that train together, 1 outside of distributed training."""
    return distributed.get_world_size() if _is_distributed() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return distributed.get_rank() if _is_distributed() else 0


@torch.no_grad()
def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over all ranks, equal to the bit on each; in place."""
    if num_ranks() > 1:
        distributed.all_reduce(tensor)
    return tensor


@torch.no_grad()
def broadcast_from_main(tensors: Iterable[Tensor]) -> None:
    """Give every rank the values of rank 0; in place, all ranks call it together."""
    if num_ranks() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
