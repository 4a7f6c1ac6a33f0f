"""What the page says of the codebook: the codes that a token likes best, what each does, and how many are in use."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from PIL import Image
from torch import Tensor

from channelvq.app.tokens import on_grey
from channelvq.checks import check_whole_number
from channelvq.codec import CodeTables
from channelvq.images import to_pil, to_tensor
from channelvq.tokenizer import CVQTokenizer


@dataclass(frozen=True, eq=False)
class Tile:
    """A code at the place of a token, and what it does there."""

    code: int
    picture: Image.Image
    share: float


def shares(tokenizer: CVQTokenizer) -> Float64[Tensor, "K N"] | None:
    """How often each code stands at each place, by the tokenizer's tables; None where it has no tables."""
    tables = CodeTables.of(tokenizer)
    return tables.shares() if bool(tables.depths.any()) else None


def effective_codes(table: Float64[Tensor, "K N"]) -> Float64[Tensor, " K"]:
    """Codes in use at each place, as perplexity: N where all are as likely, 1 where it is always the same."""
    return torch.exp(-(table * table.log()).sum(1))


def likely_codes(table: Float64[Tensor, "K N"] | None, number: int, count: int, codebook_size: int) -> list[int]:
    """The codes that stand most often at place `number` (from 1); without a table codes evenly apart."""
    count = min(count, codebook_size)
    if table is None:
        return [i * codebook_size // count for i in range(count)]
    return table[number - 1].argsort(descending=True, stable=True)[:count].tolist()


def atlas(
    tokenizer: CVQTokenizer, table: Float64[Tensor, "K N"] | None, ids: Sequence[int], number: int, count: int
) -> list[Tile]:
    """What the likeliest codes of token `number` would add to the tokens of a picture before it.

    ids: of the picture, at least number - 1. At the first token the tiles are whole pictures. Raises InputError for a
    token that there is not.
    """
    number = check_whole_number("token", number, 1, min(len(ids) + 1, tokenizer.num_tokens))
    codes, before = likely_codes(table, number, count, tokenizer.codebook_size), list(ids[: number - 1])
    shown = tokenizer.detokenize(torch.tensor([[*before, code] for code in codes]))
    if before:
        base = to_tensor(tokenizer.detokenize(torch.tensor([before]))[0]).float()
        shown = on_grey(torch.stack([to_tensor(picture).float() - base for picture in shown]))
    likely = [0.0 if table is None else float(table[number - 1, code]) for code in codes]
    return [Tile(*fields) for fields in zip(codes, shown, likely, strict=True)]


def flat(colour: tuple[int, int, int], size: int) -> Image.Image:
    """A picture of one colour, from which the atlas starts where there is no other."""
    return to_pil(torch.tensor(colour, dtype=torch.uint8)[None, :, None, None].expand(1, 3, size, size))[0]
