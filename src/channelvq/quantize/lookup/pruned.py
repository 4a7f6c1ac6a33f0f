"""Exact lookup in a codebook that stays the same, with part of the work ruled out beforehand.

    z~ = (V_p' z, |z_r|)    e~ = (V_p' e, |e_r|)    V: principal axes of the codebook, r: what p of them leave

|z - e|^2 = |z_p - e_p|^2 + |z_r - e_r|^2 >= |z~ - e~|^2, as |z_r - e_r| >= ||z_r| - |e_r||. And |e~| = |e|, so scores
|e|^2/2 - z~.e~ of p + 1 numbers bound those of D from below: the product of the first pass gets so much smaller.
Codewords are ordered so that the 16 of a group are alike. Groups whose bound is above the score of the best codeword
found are out; the codewords of the others are looked at in float32, and what is open then goes the usual way. So the
index is the same as ever.
"""

from functools import partial

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from channelvq.errors import InputError
from channelvq.quantize import nearest
from channelvq.quantize.lookup import bfloat16
from channelvq.quantize.lookup.tiles import GROUP, Open, Stage

SLACK = 2.0**-20  # over |z| |e| + |e|^2: rotation in float64, rounding to float32


class PrunedCodebook:
    """A codebook prepared for many lookups. It pays where a few axes hold most of the codebook's variance.

    codebook: (N, D), finite, read as float32, D >= 2, on the CPU. axes: the number p that is looked at first, at most
    D - 1; None takes those that hold 95 % of the sum of squares, and up to the next multiple of 32 columns.
    Raises InputError otherwise.
    """

    def __init__(self, codebook: Float[Tensor, "N D"], axes: int | None = None) -> None:
        nearest.check_shapes(codebook, codebook)
        nearest.largest_magnitude(codebook, "codebook")
        self.codebook = codebook.detach().float().contiguous()
        table = self.codebook.double()
        squares, vectors = torch.linalg.eigh(table.T @ table)
        self.rotation = vectors.flip(1)
        dim = codebook.shape[1]
        self.axes = _enough(squares.flip(0)) if axes is None else axes
        if not 1 <= self.axes < dim:
            raise InputError(f"PrunedCodebook: axes must be between 1 and D - 1 = {dim - 1}, got {self.axes}")
        reduced = self._reduce(table)
        self.order = _alike(reduced)
        self.words = self.codebook[self.order]
        self.reduced = reduced[self.order].float()

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "M D"]) -> Int64[Tensor, " M"]:
        """The same indices as `nearest_codeword(vectors, codebook)`; where bfloat16 does not pay, by it."""
        nearest.check_shapes(vectors, self.codebook)
        if not bfloat16.pays(vectors, self.codebook):
            return nearest.nearest_codeword(vectors, self.codebook)

        def first(rows: Tensor, stage: Stage) -> list[nearest.Pass]:
            return [partial(self._narrow, stage=stage), partial(bfloat16.narrow, stage=stage)]

        return nearest.look_up(vectors.detach(), self.codebook, first)

    def _narrow(self, rows: Tensor, codebook: Tensor, codes: Tensor | None, stage: Stage) -> Open:
        bounding = bfloat16.Bounding(self._reduce(rows.double()).float(), self.reduced, SLACK)
        row, code, crowded = bfloat16.narrow(rows, self.words, codes, stage, bounding)
        return Open(row, self.order[code], crowded)

    def _reduce(self, table: Float64[Tensor, "K D"]) -> Float64[Tensor, "K P"]:
        turned = table @ self.rotation
        rest = torch.linalg.vector_norm(turned[:, self.axes :], dim=1, keepdim=True)
        return torch.cat([turned[:, : self.axes], rest], 1)


def _enough(squares: Float64[Tensor, " D"]) -> int:
    shares = squares.cumsum(0) / squares.sum()
    enough = int((shares < 0.95).sum()) + 1
    columns = -(-(enough + 3) // 32) * 32  # with the rest and the half norm in two pieces
    return min(columns - 3, len(squares) - 1)


def _alike(table: Float64[Tensor, "N P"]) -> Int64[Tensor, " N"]:
    """An order in which neighbours are alike: halves along the axis of the widest spread, down to a group."""
    parts, wide = [torch.arange(len(table))], True
    while wide:
        wide, halves = False, []
        for part in parts:
            if len(part) <= GROUP:
                halves.append(part)
                continue
            wide = True
            axis = int(table[part].var(0, correction=0).argmax())
            ordered = part[table[part, axis].argsort(stable=True)]
            # Whole groups on the left, so that groups do not straddle the halves.
            middle = max(GROUP, len(part) // 2 // GROUP * GROUP)
            halves += [ordered[:middle], ordered[middle:]]
        parts = halves
    return torch.cat(parts)
