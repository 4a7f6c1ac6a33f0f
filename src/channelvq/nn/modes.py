"""States that a computation runs in, and chunks that make its rows independent of each other."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from channelvq.threads import shared

# CPU kernels change with the shape: a row gets other bits in another batch size. So what must not depend on a row's
# neighbours is computed in chunks of this fixed number of rows.
CHUNK_ROWS = 8


_LOCK = threading.Lock()
_EVALUATED: dict[nn.Module, tuple[int, bool]] = {}  # with-blocks that a module is in, and its mode before them


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a with-block, of several threads' too, whatever the precision around it."""
    modules = list(model.modules())
    with _LOCK:
        for module in modules:
            blocks, before = _EVALUATED.get(module, (0, module.training))
            _EVALUATED[module] = blocks + 1, before
        model.eval()
    try:
        with without_autocast(next(chain(model.parameters(), model.buffers()), torch.empty(0))):
            yield
    finally:
        with _LOCK:
            for module in modules:
                blocks, before = _EVALUATED.pop(module)
                if blocks > 1:
                    _EVALUATED[module] = blocks - 1, before
                else:
                    module.training = before


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Full precision inside, on a device that has another: "meta", on which a plan is made, has none."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def row_independent_kernels(device: torch.device) -> AbstractContextManager[object]:
    """Within it, a row's bits do not depend on its place in the batch.

    The CPU's fused attention gives a row other last bits on another thread, presumably by how the thread's buffers are
    aligned (seen in torch 2.13 with 2 threads, for more than half of the lengths); the plain one does not.
    """
    return _plain_attention() if device.type == "cpu" else nullcontext()


_plain_attention = shared(lambda: sdpa_kernel(SDPBackend.MATH))


def in_chunks(
    function: Callable[[Tensor], Tensor], batch: Tensor, *, exact: bool = True, rows: int = CHUNK_ROWS
) -> Tensor:
    """The function, rows to rows, over chunks of so many rows.

    exact: the last chunk is filled with copies of its first row, and a row's bits do not depend on the others.
    """
    parts = []
    with row_independent_kernels(batch.device) if exact else nullcontext():
        for chunk in batch.split(rows):
            missing = rows - len(chunk) if exact else 0
            filled = torch.cat([chunk, chunk[:1].expand(missing, *chunk.shape[1:])])
            parts.append(function(filled)[: len(chunk)])
    return torch.cat(parts)


def in_chunks_by_size(
    function: Callable[[Tensor], Tensor],
    images: Sequence[Tensor],
    *,
    rows: Callable[[tuple[int, int]], int],
    exact: bool = True,
) -> Tensor:
    """As `in_chunks`, of images (3, H, W) of different sizes to rows that are alike; never padded to a common size.

    rows: of a chunk of images of a (height, width), a number that nothing else may decide.
    """
    of_size: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        of_size.setdefault((image.shape[1], image.shape[2]), []).append(i)
    parts = [
        in_chunks(function, torch.stack([images[i] for i in numbers]), exact=exact, rows=rows(size))
        for size, numbers in of_size.items()
    ]
    order = torch.tensor([i for numbers in of_size.values() for i in numbers])
    return torch.cat(parts)[order.argsort().to(parts[0].device)]
