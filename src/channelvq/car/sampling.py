"""Sampling from CAR, so that an image depends on nothing but its prompt and its seed.

What makes an image independent of its neighbours, of `num_tokens` and of being interrupted (exact=True): a group has
always 8 rows (8 more with guidance), the text slot always T tokens, the cache at token k always T + k entries, a prefix
to continue from goes in token by token, as it came out, and attention runs on kernels whose bits do not depend on the
row. Each image has its own random numbers, one a token.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from channelvq.car.generation import Generation
from channelvq.car.group import Group, Request, filled, sampling_mode
from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.car.text import TextBatch
from channelvq.checks import check_whole_number
from channelvq.errors import InputError
from channelvq.nn.modes import CHUNK_ROWS
from channelvq.nn.processor import check_compiler

# From `SamplingSettings.warn` by `_request`, `generate` or `stream` here, and those of CAR, to the caller of CAR.
TO_CALLER_OF_CAR = 5


class Sampler:
    """Draws images from a model with one choice of settings, and scores given ones.

    exact: the images of a call do not depend on each other, at the price of groups of 8 rows; False is faster for a few
    prompts. compiled: with exact=False, see `CAR.generate`. Raises InputError where it cannot be.
    """

    def __init__(
        self,
        model: CAR,
        settings: SamplingSettings = SamplingSettings(),  # noqa: B008  # frozen
        *,
        exact: bool = True,
        compiled: bool = False,
    ) -> None:
        if compiled and exact:
            raise InputError("compiled=True goes with exact=False: compiled kernels give other bits")
        if compiled:
            check_compiler("compiled=True", model.device.type != "cpu")
        self.model, self.settings, self.exact, self.compiled = model, settings, exact, compiled

    def generate(
        self, prompts: str | Sequence[str], *, callback: Callable[[Generation], object] | None = None, **wanted: Any
    ) -> Generation:
        """See `CAR.generate`; wanted: see `request`."""
        request = self._request(prompts, **wanted)
        if callback is None:
            parts = [group.advance_to(request.num_tokens) for group in self._groups(request)]
            return self._generation(torch.cat(parts), request)
        done = None
        for done in self._stream(request, 1):
            callback(done)
        return done or self._generation(request.prefix, request)

    def stream(self, prompts: str | Sequence[str], every: int = 8, **wanted: Any) -> Iterator[Generation]:
        """See `CAR.stream`: checked at once, drawn as it is read; wanted: see `request`."""
        every = check_whole_number("every", every, 1, what="a whole number of tokens")
        return self._stream(self._request(prompts, **wanted), every)

    def _generation(self, ids: Int64[Tensor, "B k"], request: Request) -> Generation:
        return Generation(ids, request.seeds, self.model.tokenizer, request.size)

    def _stream(self, request: Request, every: int) -> Iterator[Generation]:
        groups = list(self._groups(request))
        start = request.prefix.shape[1] // every * every + every  # the first multiple that is more than the prefix
        for length in [*range(start, request.num_tokens, every), request.num_tokens]:
            ids = torch.cat([group.advance_to(length) for group in groups])
            yield self._generation(ids, request)

    def score(self, prompts: str | Sequence[str], ids: Any) -> Float[Tensor, "B k"]:
        """See `CAR.score`; the settings play no part in it."""
        text = self._encode(prompts)
        ids = _same_count(self.model.tokenizer.check_ids(ids), len(text), "score")
        rows, parts = self._rows(len(text)), []
        with sampling_mode(self.model, self.exact):
            for start in range(0, len(text), rows):
                part = (filled(t[start : start + rows], rows) for t in (text.ids, text.mask, ids))
                parts.append(-self.model(*part).nats[: len(text) - start])
        return torch.cat(parts)

    def _rows(self, count: int) -> int:
        """Of a group, for so many images."""
        return CHUNK_ROWS if self.exact else count

    def _groups(self, request: Request) -> Iterator[Group]:
        rows = self._rows(len(request))
        for start in range(0, len(request), rows):
            part = request.part(slice(start, start + rows))
            yield Group(self.model, self.settings, part, rows, exact=self.exact, compiled=self.compiled)

    def _encode(self, prompts: str | Sequence[str]) -> TextBatch:
        return self.model.text.encode(prompts, self.model.config.max_text_tokens).to(self.model.device)

    def _request(self, prompts: str | Sequence[str], **wanted: Any) -> Request:
        request = self.request(prompts, **wanted)
        self.settings.warn(self.model.config.caption_dropout, TO_CALLER_OF_CAR)
        if not self.settings.guided and bool(request.against.mask.any()):
            warnings.warn("negative_prompt: without guidance it does nothing", stacklevel=TO_CALLER_OF_CAR - 1)
        self.model.text.warn_of_unknown(prompts, TO_CALLER_OF_CAR)
        return request

    def request(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] = "",
        num_images_per_prompt: int = 1,
        num_tokens: int | None = None,
        prefix_ids: Int64[Tensor, "B p"] | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> Request:
        """What is to be drawn, checked; raises InputError as `CAR.generate` does, and draws nothing."""
        text, against = self._encode(prompts), self._encode(negative_prompt)
        if len(against) not in (1, len(text)):
            raise InputError(
                f"negative_prompt: {len(against)} texts for {len(text)} prompts; give one, or one for each prompt"
            )
        most, seed = self.model.num_tokens, self.settings.seed
        num_tokens = most if num_tokens is None else check_whole_number("num_tokens", num_tokens, 1, most)
        times = check_whole_number("num_images_per_prompt", num_images_per_prompt, 1)
        if seed > 2**63 - len(text) * times:
            raise InputError(f"seed: expected a whole number of at most 2**63 - {len(text) * times}, got {seed}")
        if size is not None:
            self.model.tokenizer.check_output_size(size, "generate")
        prefix = self._prefix(prefix_ids, len(text), num_tokens)
        images = torch.arange(len(text)).repeat_interleave(times)  # the prompt of each
        one = torch.zeros_like(images) if len(against) == 1 else images
        return Request(
            text[images], against[one], tuple(range(seed, seed + len(images))), prefix[images], num_tokens, size
        )

    def _prefix(self, prefix_ids: Any, count: int, num_tokens: int) -> Int64[Tensor, "B p"]:
        if prefix_ids is None or _is_empty(prefix_ids, count):
            return torch.empty(count, 0, dtype=torch.int64, device=self.model.device)
        prefix = _same_count(self.model.tokenizer.check_ids(prefix_ids), count, "prefix_ids")
        if prefix.shape[1] > num_tokens:
            raise InputError(
                f"prefix_ids: {prefix.shape[1]} tokens are more than num_tokens {num_tokens}, which counts the prefix"
            )
        return prefix


def _same_count(ids: Tensor, count: int, name: str) -> Tensor:
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
