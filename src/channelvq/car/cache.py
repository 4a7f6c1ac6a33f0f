"""Keys and values of a known number of tokens, without copying what is already there at every token."""

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import DynamicCache, DynamicLayer, PreTrainedConfig


class RoomyLayer(DynamicLayer):
    """As transformers' DynamicLayer, but with room for `capacity` entries taken at once.

    all_keys, all_values: the room, (rows, heads, capacity, width), zeros where there is no entry yet.
    The library's own layer concatenates: at 8 rows that took a quarter of the time of a token. Its static layer has
    room too, but then attention runs over all of it from the first token on.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; gives views of all entries so far, (rows, heads, entries, width)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            rows, heads, _, width = key_states.shape
            self.all_keys = key_states.new_zeros(rows, heads, self.capacity, width)
            self.all_values = value_states.new_zeros(rows, heads, self.capacity, value_states.shape[-1])
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        self.all_keys[:, :, start:end] = key_states
        self.all_values[:, :, start:end] = value_states
        self.keys, self.values = self.all_keys[:, :, :end], self.all_values[:, :, :end]
        return self.keys, self.values


def roomy_cache(config: PreTrainedConfig, capacity: int) -> DynamicCache:
    """A cache for up to `capacity` tokens; layers that are not plain attention over all of them stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class FixedLayer(DynamicLayer):
    """Room for all entries: `place` says where the next one goes, and the attention mask which ones are there."""

    is_compileable = True
    keys: Tensor
    values: Tensor

    def __init__(self, filled: RoomyLayer, place: Int64[Tensor, "1"]) -> None:
        super().__init__()
        self.keys, self.values = filled.all_keys, filled.all_values
        self.device, self.place, self.is_initialized = self.keys.device, place, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the entry of one token; gives all the room."""
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Positions come with the inputs, so nothing is counted here."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All the room, from its start."""
        return self.keys.shape[2], 0


class RowsLayer(FixedLayer):
    """As FixedLayer, but `place`, (rows,), is another one in each row."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the entry of one token a row; gives all the room."""
        rows = torch.arange(len(self.place), device=self.place.device)
        self.keys[rows, :, self.place] = key_states[:, :, 0]
        self.values[rows, :, self.place] = value_states[:, :, 0]
        return self.keys, self.values


def keeps_plain_attention(config: PreTrainedConfig) -> bool:
    """Whether every layer's state is the keys and values of all tokens, which `FixedLayer` can hold."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
