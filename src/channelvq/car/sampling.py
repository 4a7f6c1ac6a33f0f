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
from channelvq.car.group import Group, filled, sampling_mode
from channelvq.car.model import CAR
from channelvq.car.request import Request, checked_request, encoded, same_count
from channelvq.car.settings import SamplingSettings
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
        text = encoded(self.model, prompts)
        ids = same_count(self.model.tokenizer.check_ids(ids), len(text), "score")
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

    def _request(self, prompts: str | Sequence[str], **wanted: Any) -> Request:
        request = self.request(prompts, **wanted)
        self.settings.warn(self.model.config.caption_dropout, TO_CALLER_OF_CAR)
        if not self.settings.guided and bool(request.against.mask.any()):
            warnings.warn("negative_prompt: without guidance it does nothing", stacklevel=TO_CALLER_OF_CAR - 1)
        self.model.text.warn_of_unknown(prompts, TO_CALLER_OF_CAR)
        return request

    def request(self, prompts: str | Sequence[str], **wanted: Any) -> Request:
        """What is to be drawn, checked; wanted: see `checked_request`. Raises InputError as `CAR.generate` does."""
        return checked_request(self.model, self.settings.seed, prompts, **wanted)
