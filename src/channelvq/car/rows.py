"""A fixed number of rows of the backbone, each at its own position, in room for all tokens from the start.

    begin: text slot + marker of some rows --backbone, own cache--> copied into the room of those rows
    step:  one new input a row ------------backbone---------------> an entry more in each row that goes on

Attention always runs over all T + C entries and a mask says which of them a row has. So the shapes of a step never
change, and with them the bits of a row: neither with its neighbours nor with how far they are. Entries that a row does
not have get weight 0 exactly.

R rows (with guidance the second half with no prompt or a negative one), T text slot, C image tokens, E embedding, H
hidden size.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import DynamicCache

from channelvq.car.backbone import run_backbone, run_step
from channelvq.car.cache import RoomyLayer, RowsLayer, keeps_plain_attention, roomy_cache
from channelvq.car.model import CAR
from channelvq.car.text import TextBatch
from channelvq.nn.modes import CHUNK_ROWS

_ATTENTION = ("sdpa", "eager")  # take a mask of numbers


def can_have_rows(model: CAR) -> bool:
    """Whether the backbone's state is plain keys and values, and its attention takes the mask of `Rows`."""
    backbone, config = model.backbone, model.backbone.config
    attention = getattr(config, "_attn_implementation", None)
    return bool(backbone._supports_attention_backend) and attention in _ATTENTION and keeps_plain_attention(config)


class Rows:
    """8 images' rows, with guidance 8 more for the same images with no prompt or a negative one."""

    def __init__(self, model: CAR, guided: bool) -> None:
        self.model, self.guided = model, guided
        count, room = CHUNK_ROWS * (2 if guided else 1), model.config.max_text_tokens + model.num_tokens
        device, dtype = model.device, model.text_embedding.weight.dtype
        self.place = torch.zeros(count, dtype=torch.int64, device=device)  # of a row's next entry
        self.position = torch.zeros_like(self.place)  # of that entry, not counting padding
        self.mask = torch.full((count, 1, 1, room), -math.inf, dtype=dtype, device=device)
        self.cache: DynamicCache | None = None
        self.table = model.image_table()

    def begin(self, rows: Sequence[int], text: TextBatch) -> Float[Tensor, "R 1 H"]:
        """Put prompts into rows, whatever was there: the first of the given 8 into the first of `rows`, and so on.

        text: of `text_rows`, 8 prompts and with guidance 8 more for the same rows. Gives the hidden states after the
        marker, in the order of the prompts.
        """
        marker = self.model.image_inputs(text.ids[:, :0], table=self.table)
        words = self.model.text_embedding(text.ids)
        inputs = torch.cat([words, marker.to(words.dtype)], dim=1)
        mask = torch.cat([text.mask, text.mask.new_ones(len(text), 1)], dim=1)
        filled = roomy_cache(self.model.backbone.config, self.mask.shape[-1])
        hidden = run_backbone(self.model.backbone, inputs, mask, filled)[:, -1:]
        self._take(list(rows), filled, mask)
        return hidden

    def _take(self, rows: list[int], filled: DynamicCache, mask: Bool[Tensor, "R T+1"]) -> None:
        given, half = list(range(len(rows))), CHUNK_ROWS
        if self.guided:
            rows, given = rows + [row + half for row in rows], given + [row + half for row in given]
        to, source = (torch.tensor(numbers, device=self.place.device) for numbers in (rows, given))
        if self.cache is None:  # their room becomes that of all rows
            if rows != given:
                raise ValueError(f"the first prompts go into the first rows, got {rows}")
            self.cache = DynamicCache(config=self.model.backbone.config)
            layers = [layer for layer in filled.layers if isinstance(layer, RoomyLayer)]
            self.cache.layers[:] = [RowsLayer(layer, self.place) for layer in layers]
        else:
            for layer, new in zip(self.cache.layers, filled.layers, strict=True):
                if isinstance(layer, RowsLayer) and isinstance(new, RoomyLayer):
                    # All the room: nothing of a former image stays.
                    layer.keys[to], layer.values[to] = new.all_keys[source], new.all_values[source]
        entries = mask.shape[1]
        self.mask[to] = -math.inf
        self.mask[to, 0, 0, :entries] = torch.where(mask[source], 0.0, -math.inf).to(self.mask.dtype)
        self.place[to], self.position[to] = entries, mask[source].sum(1)

    def step(self, ids: Int64[Tensor, " 8"], going: Bool[Tensor, " 8"] | None = None) -> Float[Tensor, "R 1 H"]:
        """Hidden states after one more token of each row; rows that are not `going` stay where they are."""
        if self.cache is None:
            raise ValueError("step before begin")
        going = torch.ones_like(ids, dtype=torch.bool) if going is None else going
        if self.guided:
            ids, going = torch.cat([ids, ids]), torch.cat([going, going])
        text = self.model.config.max_text_tokens
        # A row that does not go on computes what nobody reads, where its next entry will be written over it.
        at = self.place.clamp(text + 1, self.mask.shape[-1] - 1)
        inputs = self.model.next_inputs(ids, at - text, self.table)
        rows = torch.arange(len(at), device=at.device)
        self.mask[rows, 0, 0, at] = 0.0
        self.place.copy_(at)
        hidden = run_step(self.model.backbone, inputs, self.mask, self.position[:, None], self.cache)
        self.place += going
        self.position += going
        return hidden
