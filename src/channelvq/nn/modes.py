"""States that a computation runs in, as with-blocks."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a with-block."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


def row_independent_kernels(device: torch.device) -> AbstractContextManager[object]:
    """Within it, a row's bits do not depend on its place in the batch.

    The CPU's fused attention gives a row other last bits on another thread, presumably by how the thread's buffers are
    aligned (seen in torch 2.13 with 2 threads, for more than half of the lengths); the plain one does not.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
