"""Several captions and their image tokens one behind another in a row, instead of a row of padding for each.

    [pad pad a a A A A]      [a a A A A b b b b B B B]      each letter a sample: caption small, image tokens large;
    [b b b b B B B]     -->  [c C C C . . . . . . . .]      no sample sees another, positions begin anew with each
    [pad pad pad c C C C]

What keeps samples apart is transformers' own: it takes positions that begin anew as packed sequences.
B samples of n columns, padded on the left; R rows of m positions; E embedding, H hidden size.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from channelvq.car.backbone import run_backbone
from channelvq.errors import InputError
from channelvq.nn.modes import evaluating


def share_out(lengths: Sequence[int], bound: int) -> list[list[int]]:
    """The samples of each row: the longest first, each into the emptiest of as few rows as hold them by this.

    Rows come out nearly alike in length, so little of them is padding. Raises InputError for a sample of more than
    `bound` positions.
    """
    if max(lengths) > bound:
        raise InputError(f"packing: a sample of {max(lengths)} positions does not fit into a row of {bound}")
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    count = -(-sum(lengths) // bound)
    while True:  # ends: each fits into a row of its own
        rows: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for i in longest_first:
            emptiest = filled.index(min(filled))
            rows[emptiest].append(i)
            filled[emptiest] += lengths[i]
        if max(filled) <= bound:
            return rows
        count += 1


def packed_rows(mask: Bool[Tensor, "B n"], bound: int, multiple: int = 1) -> Int64[Tensor, "R m"]:
    """Which column of all samples' columns, one sample after the other, is where; -1 on padding at the end of a row.

    mask: False on padding, on the left. bound: m at most. multiple: m is one of it, or `bound`.
    """
    width, lengths = mask.shape[1], mask.sum(1).tolist()
    rows = share_out(lengths, bound)
    longest = max(sum(lengths[i] for i in row) for row in rows)
    laid = torch.full((len(rows), min(bound, longest + -longest % multiple)), -1)
    for columns, row in zip(laid, rows, strict=True):
        own = torch.cat([torch.arange((i + 1) * width - lengths[i], (i + 1) * width) for i in row])
        columns[: len(own)] = own
    return laid


def run_packed(
    model: PreTrainedModel, inputs: Float[Tensor, "B n E"], mask: Bool[Tensor, "B n"], rows: Int64[Tensor, "R m"]
) -> Float[Tensor, "B n H"]:
    """As `run_backbone` without a cache, computed in the rows of `packed_rows`; of no meaning on padding."""
    there, places = rows >= 0, rows.clamp(min=0).flatten()
    positions = (mask.cumsum(1) - 1).flatten()[places].view_as(rows) * there
    packed = inputs.flatten(0, 1).index_select(0, places).view(*rows.shape, -1)
    hidden = model(inputs_embeds=packed, position_ids=positions, use_cache=False).last_hidden_state
    # Where each column went; padding of the rows goes to an entry that nothing reads.
    target = torch.where(there, rows, mask.numel()).flatten()
    back = torch.zeros(mask.numel() + 1, dtype=torch.int64, device=rows.device)
    back = back.scatter(0, target, torch.arange(len(target), device=rows.device))
    return hidden.flatten(0, 1).index_select(0, back[:-1]).view(*mask.shape, -1)


@torch.no_grad()
def check_packing(model: PreTrainedModel, bound: int, longest: int) -> None:
    """InputError for rows that a sample may not fit into, or a backbone in which packed ones see each other.

    bound: positions of a row at most. longest: positions of a sample at most.
    """
    if bound < longest:
        raise InputError(
            f"objective.packing {bound}: expected {longest} or more, the positions of the longest caption "
            "(model.max_text_tokens) and its image"
        )
    weight = next(model.parameters())
    width = cast(nn.Embedding, model.get_input_embeddings()).embedding_dim
    inputs = torch.randn(3, 6, width, generator=torch.Generator().manual_seed(0)).to(weight)
    other = torch.cat([inputs[:1].flip(1), inputs[1:]])
    mask = torch.arange(6, device=weight.device) >= torch.tensor([[0], [1], [2]], device=weight.device)
    rows = packed_rows(mask, 20).to(weight.device)  # one, which the first sample begins
    with evaluating(model):
        alone = run_backbone(model, inputs, mask)
        packed, beside = (run_packed(model, x, mask, rows) for x in (inputs, other))
    size = float(alone[mask].abs().max())
    # Nothing at all: with fresh weights one that lets a few tokens through, such as a convolution, shows as little.
    seen = float((packed - beside)[1:][mask[1:]].abs().max())
    if not (seen <= 1e-7 * size and float((packed - alone)[mask].abs().max()) <= 1e-3 * size):
        raise InputError(
            f"objective.packing: in a {model.config.model_type} with these settings a sample depends on those before "
            "it in its row; set it to null"
        )
