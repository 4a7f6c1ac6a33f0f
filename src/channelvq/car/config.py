"""What decides a CAR model."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT

# About 5 million parameters.
SMALL_QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 768,
}


@dataclass(frozen=True, config=STRICT)
class CARConfig:
    """The decoder, the text slot, the head, and what training hides.

    backbone: settings of a transformers config (without a `model_type` they are merged over `SMALL_QWEN3`), or the
    folder or hub id of a language model, whose weights are then loaded.
    max_text_tokens: T, the most tokens of a prompt.
    head: "linear" has a row of its own for each code; "codebook" scores a code by its projected codeword, so that codes
    that look alike share what is learned.
    channel_embedding: adds a learned embedding of the channel number to the image inputs. Off by default: the rotary
    distance to the marker tells the channel, and only without it can a model be exported as a stock language model.
    caption_dropout: probability that training hides a caption, which teaches the unconditional distribution that
    guidance needs.
    head_start: what the rows of a linear head begin as: "codebook", a random projection of the codewords, so that codes
    that look alike begin with like scores; None, small random numbers.
    num_tokens: the generator writes the first so many tokens of an image, which a nested tokenizer decodes; None, all.
    """

    backbone: str | dict[str, Any] = field(default_factory=lambda: dict(SMALL_QWEN3))
    max_text_tokens: PositiveInt = 32
    head: Literal["linear", "codebook"] = "linear"
    channel_embedding: bool = False
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    head_start: Literal["codebook"] | None = None
    num_tokens: PositiveInt | None = None

    def __post_init__(self) -> None:
        if self.head_start and self.head != "linear":
            raise ValueError(f"head_start {self.head_start!r} is for head: linear, this one is {self.head!r}")
