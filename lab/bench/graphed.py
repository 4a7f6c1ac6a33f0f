"""Sampling's compiled step recorded once as a CUDA graph and replayed, to measure what the launches of a token cost.

Not in the product: a graph holds the addresses of its tensors, so each group of images records its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from channelvq.car import group
from channelvq.car.compiled import CompiledStep


class GraphedStep(CompiledStep):
    """As CompiledStep, on a GPU. Cache, mask and place stay where they are; what else a token brings is copied in."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, inputs: Tensor, positions: Tensor, table: Tensor) -> Tensor:
        """The logits after one input a row, from memory of their own."""
        if self.graph is None:
            self._record(inputs, positions, table)
        else:
            self.inputs.copy_(inputs)
            self.positions.copy_(positions)
            self.graph.replay()
        return self.logits.clone()

    def _record(self, inputs: Tensor, positions: Tensor, table: Tensor) -> None:
        self.inputs, self.positions = inputs.clone(), positions.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles at the first call; a call again writes the same entries of the cache
            for _ in range(2):
                super().run(self.inputs, self.positions, table)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = super().run(self.inputs, self.positions, table)
        graph.replay()  # recording computes nothing
        self.graph = graph


@contextmanager
def graphed() -> Iterator[None]:
    """Within it compiled=True is by a CUDA graph."""
    with patch.object(group, "CompiledStep", GraphedStep):
        yield
