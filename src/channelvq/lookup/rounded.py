"""A pass of the lookup in rounded arithmetic, float32 or float64, with its proven error bound."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from channelvq.lookup.tiles import CROWD, GROUP, HELD, Open, Stage, read

CODE_TILE = 1024


def narrow(rows: Float[Tensor, "M D"], codebook: Float[Tensor, "N D"], codes: Tensor | None, stage: Stage) -> Open:
    """What the bound of the stage leaves open among `codes` (ascending; None for all).

    A codeword is open while its score less the bound does not exceed the least score plus bound seen so far.
    """
    rows = rows.to(stage.dtype) * stage.scale
    row_norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    ceiling = torch.full_like(row_norms, torch.inf)
    crowded = torch.zeros_like(ceiling, dtype=torch.bool)
    row = code = torch.zeros(0, dtype=torch.int64, device=rows.device)
    floor = torch.zeros_like(ceiling[:0])
    for start, tile in read(codebook, codes, _tile_size(rows)):
        scores, norms = _scores(tile.to(stage.dtype) * stage.scale, rows)
        bound = stage.unit * norms * (row_norms + norms) + stage.tiny * (1 + norms + row_norms)
        minima = scores.amin(1).double()
        ceiling = torch.minimum(ceiling, (minima + bound).amin(0))
        is_open = minima - bound <= ceiling
        crowded |= is_open.sum(0) > CROWD
        group, at = (is_open & ~crowded).nonzero(as_tuple=True)
        floors = scores[group, :, at].double() - bound[group, at][:, None]
        pair, member = (floors <= ceiling[at][:, None]).nonzero(as_tuple=True)
        row, code = torch.cat([row, at[pair]]), torch.cat([code, start + group[pair] * GROUP + member])
        floor = torch.cat([floor, floors[pair, member]])
        kept = floor <= ceiling[row]
        crowded |= torch.bincount(row[kept], minlength=len(rows)) > CROWD
        kept &= ~crowded[row]
        row, code, floor = row[kept], code[kept], floor[kept]
    return Open(row, code if codes is None else codes[code], crowded)


def _tile_size(rows: Tensor) -> int:
    """Codewords in a tile: a multiple of the group, fewer where numbers are long or rows are wide."""
    size = min(CODE_TILE * 4 // rows.element_size(), HELD // rows.shape[1])
    return max(GROUP, size // GROUP * GROUP)


def _scores(tile: Tensor, rows: Tensor) -> tuple[Float[Tensor, "G S M"], Float[Tensor, "G 1"]]:
    """|e|^2/2 - z.e by groups of codewords, infinity past the last, and the largest norm |e| in each group."""
    norms = torch.linalg.vector_norm(tile, dim=1, dtype=torch.float64)
    scores = torch.addmm((norms.square() / 2).to(tile.dtype)[:, None], tile, rows.T, alpha=-1)
    missing = -len(tile) % GROUP
    if missing:
        scores, norms = F.pad(scores, (0, 0, 0, missing), value=torch.inf), F.pad(norms, (0, missing))
    # Reducing the middle dimension runs along contiguous memory, unlike a reduction over the last one.
    return scores.view(-1, GROUP, len(rows)), norms.view(-1, GROUP).amax(1, keepdim=True)
