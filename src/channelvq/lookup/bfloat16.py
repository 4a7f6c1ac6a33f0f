"""The first pass of the lookup on processors that multiply bfloat16 faster: with AMX, in a quarter of float32's time.

M rows   N codewords   K = D + 2, filled up to a multiple of 32   G = 16 codewords in a group

[-z | 1 | 1] . [e | h | h']  =  |e|^2/2 - z.e     h + h' the half norm in two pieces; minima of groups are kept
|                                                 (N/G, M) of bfloat16 for at most 65,536 codewords at a time
open groups by the bound -> their codewords in float32 -> open codewords by the bound of float32
"""

from importlib.util import find_spec
from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Float, Float64, Int64
from torch import Tensor

from channelvq.lookup import rounded
from channelvq.lookup.tiles import CROWD, GROUP, Open, Stage, read
from channelvq.nn.processor import bfloat16_speedup

CODE_TILE = 1024
BLOCK = 2**16  # codewords whose group minima are held at once
FEW_ROWS, FEW_CODES, FEW_NUMBERS = 48, 2048, 32  # below these the float32 pass is as fast (results/lookup.json)
MANY_NUMBERS = 4096  # above, the working tensors would be too large

CROWDED_TILES, CROWDED_GROUPS = 16, 32  # a row with more open ones waits for the next pass
_HELD_PAIRS = 4096  # pairs (row, tile) whose groups are looked at together
_PAIRS = 2**20  # float32 numbers of codewords looked at together: what stays in the cache
_TOGETHER = 128  # rows whose norms are computed together
EARNED = 1.25  # how much faster the product has to be, to earn what the pass does beside it
_ROUND = 2.0**-8  # relative error of a number rounded to the 8 bits of bfloat16
_OUTPUT = 1.01 * _ROUND  # the same over the rounded number
_SLACK = 1 + 2.0**-20  # for the rounding of norms and of the bound itself


def pays(rows: Tensor, codebook: Tensor) -> bool:
    """Whether this pass comes first: in hardware that accumulates in float32, faster there, and enough of it."""
    if len(rows) < FEW_ROWS or len(codebook) < FEW_CODES or not FEW_NUMBERS <= rows.shape[1] <= MANY_NUMBERS:
        return False
    if rows.device.type == "cuda":
        return find_spec("triton") is not None
    return (
        rows.device.type == "cpu"
        and torch.backends.mkldnn.enabled  # pyright: ignore[reportAttributeAccessIssue]
        and torch.backends.mkldnn.is_available()
        and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        and bfloat16_speedup() > EARNED
    )


class Rows(NamedTuple):
    """The rows, scaled, and what the bounds need of them."""

    numbers: Float[Tensor, "M D"]
    operand: BFloat16[Tensor, "M K"]
    norms: Float64[Tensor, " M"]
    residuals: Float64[Tensor, " M"]  # |z - bf16(z)|


class _Block(NamedTuple):
    """Group minima of up to BLOCK codewords, by tiles of S groups."""

    minima: Float[Tensor, "T S M"]  # bfloat16 from the processor's product, float32 from the kernel
    tiles: Float[Tensor, "T M"]  # their minima
    norms: Float64[Tensor, "T S G"]  # |e|, zero past the last codeword


def narrow(rows: Float[Tensor, "M D"], codebook: Float[Tensor, "N D"], codes: Tensor | None, stage: Stage) -> Open:
    """What is left open after bfloat16 and float32; stage: the arithmetic of float32.

    codes: None for all; among a list of some, which is short, float32 alone is as fast.
    """
    if codes is not None:
        return rounded.narrow(rows, codebook, codes, stage)
    prepared = _prepare(rows * stage.scale)
    ceiling = torch.full_like(prepared.norms, torch.inf)  # the least score plus its bound so far
    crowded = torch.zeros_like(ceiling, dtype=torch.bool)
    row = code = torch.zeros(0, dtype=torch.int64, device=rows.device)
    floor = ceiling[:0]
    for start in range(0, len(codebook), BLOCK):
        words = codebook[start : start + BLOCK]
        block = _minima(prepared, words, stage.scale)
        at, group = _open_groups(prepared, block, stage, ceiling, crowded)
        scores, bound = _scores(prepared, words, block.norms.view(-1, GROUP), at, group, stage)
        ceiling.scatter_reduce_(0, at, (scores + bound).amin(1), "amin")
        floors = scores - bound
        pair, member = (floors <= ceiling[at][:, None]).nonzero(as_tuple=True)
        row, code = torch.cat([row, at[pair]]), torch.cat([code, start + group[pair] * GROUP + member])
        floor = torch.cat([floor, floors[pair, member]])
        kept = (floor <= ceiling[row]) & ~crowded[row]
        row, code, floor = row[kept], code[kept], floor[kept]
    crowded |= torch.bincount(row, minlength=len(rows)) > CROWD
    kept = ~crowded[row]
    return Open(row[kept], code[kept], crowded)


def _prepare(rows: Tensor) -> Rows:
    dim = rows.shape[1]
    operand = torch.zeros(len(rows), -(-(dim + 2) // 32) * 32, dtype=torch.bfloat16, device=rows.device)
    operand[:, :dim].copy_(rows).neg_()  # without a negated copy in float32
    operand[:, dim : dim + 2] = 1
    pieces = zip(rows.split(_TOGETHER), operand[:, :dim].split(_TOGETHER), strict=True)
    residuals = torch.cat([_norms(z + o.float()) for z, o in pieces])
    return Rows(rows, operand, _norms(rows), residuals)


def _norms(rows: Tensor) -> Tensor:
    """|z| in float64, of a few rows at a time: in float64 they take twice their memory."""
    parts = rows.split(_TOGETHER)
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts])


def _minima(rows: Rows, words: Tensor, scale: float) -> _Block:
    """Group minima, by the kernel on a GPU."""
    tiles, groups = -(-len(words) // CODE_TILE), CODE_TILE // GROUP
    norms = torch.zeros(tiles * CODE_TILE, dtype=torch.float64, device=words.device)
    if words.is_cuda:
        from channelvq.lookup.triton_kernel import group_minima

        for start, tile in read(words, None, CODE_TILE):
            norms[start : start + len(tile)] = torch.linalg.vector_norm(tile * scale, dim=1, dtype=torch.float64)
        minima = group_minima(rows.numbers, words, norms, scale, GROUP).view(tiles, groups, -1)
        return _Block(minima, minima.amin(1), norms.view(tiles, groups, GROUP))
    return _products(rows, words, scale, norms)


def _products(rows: Rows, words: Tensor, scale: float, norms: Tensor) -> _Block:
    """One product in bfloat16 for each tile of codewords, reduced while it is in the cache; fills in the norms."""
    dim, count = words.shape[1], len(rows.numbers)
    tiles, groups = len(norms) // CODE_TILE, CODE_TILE // GROUP
    operand = torch.zeros(CODE_TILE, rows.operand.shape[1], dtype=torch.bfloat16)
    product = torch.empty(CODE_TILE, count, dtype=torch.bfloat16)
    minima = torch.empty(tiles, groups, count, dtype=torch.bfloat16)
    least = torch.empty(tiles, count, dtype=torch.bfloat16)
    columns = rows.operand.T
    for start, part in read(words, None, CODE_TILE):
        tile, i = part if scale == 1 else part * scale, start // CODE_TILE
        if len(tile) < CODE_TILE:
            operand.zero_()
            operand[:, dim] = torch.inf  # codewords that are not there are the farthest
        norm = _norms(tile)
        half = norm.square() / 2
        operand[: len(tile), :dim] = tile
        operand[: len(tile), dim] = half
        operand[: len(tile), dim + 1] = half - operand[: len(tile), dim]
        torch.mm(operand, columns, out=product)
        torch.amin(product.view(groups, GROUP, count), 1, out=minima[i])
        torch.amin(minima[i], 0, out=least[i])
        norms[start : start + len(tile)] = norm
    return _Block(minima, least, norms.view(tiles, groups, GROUP))


def _bound(least: Tensor, norms: Tensor, rows: Tensor, residuals: Tensor, stage: Stage) -> Tensor:
    """Error of a minimum `least` over codewords of norm up to `norms`: all (...) of float64.

    |z.e - z'.e'| <= |z - z'| |e| + |z'| |e - e'| with e' within 2^-8 of e; h + h' is within 2^-16 of the half norm; the
    sum is rounded in float32 (stage.unit) and once more to bfloat16.
    """
    half = norms.square() / 2
    operands = norms * (residuals + _ROUND * (rows + residuals))
    sums = 1.02 * stage.unit * (norms * rows + half) + stage.tiny * (1 + norms + rows)
    return (operands + sums + 1.01 * _ROUND**2 * half + _OUTPUT * least.abs()) * _SLACK


def _open_groups(
    rows: Rows, block: _Block, stage: Stage, ceiling: Tensor, crowded: Tensor
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"]]:
    """Pairs (row, group of the block) that may hold the least score; marks crowded rows.

    First by tiles, which are few, then by the groups of the open tiles. The minima lower the ceiling.
    """
    largest = block.norms.amax(2)
    least, norms = block.tiles.double(), largest.amax(1)[:, None]
    error = _bound(least, norms, rows.norms, rows.residuals, stage)
    torch.minimum(ceiling, (least + error).amin(0), out=ceiling)
    is_open = least - error <= ceiling
    crowded |= is_open.sum(0) > CROWDED_TILES
    open_pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    pairs = (is_open & ~crowded).nonzero()
    for tile, at in (part.T for part in pairs.split(_HELD_PAIRS)):
        least = block.minima[tile, :, at].double()
        error = _bound(least, largest[tile], rows.norms[at][:, None], rows.residuals[at][:, None], stage)
        ceiling.scatter_reduce_(0, at, (least + error).amin(1), "amin")
        may_hold = least - error <= ceiling[at][:, None]
        wide = may_hold.sum(1) > CROWDED_GROUPS
        crowded[at[wide]] = True
        pair, group = (may_hold & ~wide[:, None]).nonzero(as_tuple=True)
        open_pairs.append((at[pair], tile[pair] * block.minima.shape[1] + group, (least - error)[pair, group]))
    at, group, floor = (torch.cat(parts) for parts in zip(*open_pairs, strict=True))
    kept = floor <= ceiling[at]  # which later pairs may have lowered
    crowded |= torch.bincount(at[kept], minlength=len(crowded)) > CROWDED_GROUPS
    kept &= ~crowded[at]
    return at[kept], group[kept]


def _scores(
    rows: Rows, words: Tensor, norms: Float64[Tensor, "H G"], at: Tensor, group: Tensor, stage: Stage
) -> tuple[Float64[Tensor, "P G"], Float64[Tensor, "P G"]]:
    """Scores in float32 of the codewords of each pair's group, infinity past the last, and their error bounds."""
    norms = norms[group]
    scores = torch.empty(len(at), GROUP, device=at.device)
    size = max(1, _PAIRS // (GROUP * words.shape[1]))
    member = torch.arange(GROUP, device=at.device)
    for start in range(0, len(at), size):
        part = slice(start, start + size)
        code = group[part, None] * GROUP + member
        chosen = words[code.clamp_max(len(words) - 1)].float()
        if stage.scale != 1:
            chosen = chosen * stage.scale
        half = (norms[part].square() / 2).float().masked_fill_(code >= len(words), torch.inf)
        z = rows.numbers[at[part]]
        scores[part] = torch.baddbmm(half[:, :, None], chosen, z[:, :, None], alpha=-1)[:, :, 0]
    z = rows.norms[at][:, None]
    bound = stage.unit * norms * (z + norms) + stage.tiny * (1 + norms + z)
    return scores.double(), bound
