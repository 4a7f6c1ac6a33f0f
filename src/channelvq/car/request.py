"""What is to be drawn, checked before anything is: prompts as tokens, seeds, the tokens to continue from, the size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Int64
from torch import Tensor

from channelvq.car.text import TextBatch, TextTokenizer
from channelvq.checks import check_whole_number
from channelvq.errors import InputError
from channelvq.tokenizer import CVQTokenizer


class TextToImage(Protocol):
    """What takes prompts and gives images: a CAR, or its export whose language model runs elsewhere."""

    @property
    def tokenizer(self) -> CVQTokenizer:
        """Of images."""
        ...

    @property
    def text(self) -> TextTokenizer:
        """Of prompts."""
        ...

    @property
    def num_tokens(self) -> int:
        """C, tokens of an image."""
        ...

    @property
    def max_text_tokens(self) -> int:
        """T, tokens of a prompt at most."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be drawn, checked.

    against: what guidance leads away from, the empty prompt or a negative one. prefix: ids to continue from.
    num_tokens: of each image, with its prefix. size: of the images, see `Generation`.
    """

    text: TextBatch
    against: TextBatch
    seeds: tuple[int, ...]
    prefix: Int64[Tensor, "B p"]
    num_tokens: int
    size: int | tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    def part(self, rows: slice) -> "Request":
        """Of some of the images."""
        return Request(
            self.text[rows], self.against[rows], self.seeds[rows], self.prefix[rows], self.num_tokens, self.size
        )


def checked_request(
    model: TextToImage,
    seed: int,
    prompts: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str] = "",
    num_images_per_prompt: int = 1,
    num_tokens: int | None = None,
    prefix_ids: Int64[Tensor, "B p"] | None = None,
    size: int | tuple[int, int] | None = None,
) -> Request:
    """What is to be drawn; raises InputError as `CAR.generate` does, and draws nothing."""
    text, against = encoded(model, prompts), encoded(model, negative_prompt)
    if len(against) not in (1, len(text)):
        raise InputError(
            f"negative_prompt: {len(against)} texts for {len(text)} prompts; give one, or one for each prompt"
        )
    most = model.num_tokens
    num_tokens = most if num_tokens is None else check_whole_number("num_tokens", num_tokens, 1, most)
    times = check_whole_number("num_images_per_prompt", num_images_per_prompt, 1)
    if seed > 2**63 - len(text) * times:
        raise InputError(f"seed: expected a whole number of at most 2**63 - {len(text) * times}, got {seed}")
    if size is not None:
        model.tokenizer.check_output_size(size, "generate")
    prefix = _prefix(model, prefix_ids, len(text), num_tokens)
    images = torch.arange(len(text)).repeat_interleave(times)  # the prompt of each
    one = torch.zeros_like(images) if len(against) == 1 else images
    return Request(text[images], against[one], tuple(range(seed, seed + len(images))), prefix[images], num_tokens, size)


def encoded(model: TextToImage, prompts: str | Sequence[str]) -> TextBatch:
    """Prompts as tokens in the model's slot, where it computes."""
    return model.text.encode(prompts, model.max_text_tokens).to(model.device)


def _prefix(model: TextToImage, prefix_ids: Any, count: int, num_tokens: int) -> Int64[Tensor, "B p"]:
    if prefix_ids is None or _is_empty(prefix_ids, count):
        return torch.empty(count, 0, dtype=torch.int64, device=model.device)
    prefix = same_count(model.tokenizer.check_ids(prefix_ids), count, "prefix_ids")
    if prefix.shape[1] > num_tokens:
        raise InputError(
            f"prefix_ids: {prefix.shape[1]} tokens are more than num_tokens {num_tokens}, which counts the prefix"
        )
    return prefix


def same_count(ids: Tensor, count: int, name: str) -> Tensor:
    """The ids; InputError where there is not a row for each prompt."""
    if len(ids) != count:
        raise InputError(f"{name}: {len(ids)} rows of ids for {count} prompts; give one for each prompt")
    return ids


def _is_empty(ids: Any, count: int) -> bool:
    """Whether they are the first 0 tokens of so many images, or of one."""
    try:
        shape = tuple(torch.as_tensor(ids).shape)
    except (TypeError, ValueError, RuntimeError):
        return False
    return shape == (count, 0) or (count == 1 and shape == (0,))
