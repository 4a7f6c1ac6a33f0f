"""`POST /v1/images/generations`: from a request to a ticket, and from its pictures to the answer."""

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from channelvq.car.request import checked_request
from channelvq.car.settings import SamplingSettings
from channelvq.car.slots import drawings
from channelvq.errors import InputError
from channelvq.images.encoded import Format, data_url, to_base64
from channelvq.serve.engine import Engine, Ticket
from channelvq.serve.errors import RefusedError, too_late
from channelvq.serve.schemas import Event, ImageData, ImageRequest, ImagesResponse, Usage


@dataclass(frozen=True)
class Picture:
    """One that the engine decoded. number: of the image. length: its tokens."""

    number: int
    length: int
    image: Image.Image


class Job:
    """A request on its way. Iterating gives its pictures, and ends with the last image.

    Raises RefusedError or InputError for what cannot be drawn, when the job is made or on the way.
    """

    def __init__(self, engine: Engine, wanted: ImageRequest) -> None:
        self.engine, self.wanted, self.model = engine, wanted, engine.model
        self.created = int(time.time())
        self.format: Format = wanted.output_format or "png"
        self.seed = secrets.randbelow(2**31) if wanted.seed is None else wanted.seed
        self._check()
        size, self.side = self._size()
        guidance = wanted.guidance_scale if engine.guides else 1.0
        settings = SamplingSettings(guidance, wanted.temperature, wanted.top_k, wanted.top_p, self.seed)
        request = checked_request(
            self.model, self.seed, wanted.prompt, negative_prompt=wanted.negative_prompt,
            num_images_per_prompt=wanted.n, num_tokens=wanted.num_tokens,
        )  # fmt: skip
        self.num_tokens, self.text_tokens = request.num_tokens, int(request.text.mask.sum())
        self.partial = partial_lengths(self.num_tokens, wanted.partial_images or 0)
        loop, self._news = asyncio.get_running_loop(), asyncio.Queue[Picture | Exception]()

        def tell(news: Picture | Exception) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._news.put_nowait, news)

        images = list(drawings(request, settings, self.model.num_tokens))
        self.ticket = Ticket(images, lambda *shown: tell(Picture(*shown)), tell, frozenset(self.partial), size)
        engine.submit(self.ticket)

    def _check(self) -> None:
        wanted, limits = self.wanted, self.engine.limits
        if wanted.n > limits.images:
            raise RefusedError(400, f"n: expected 1..{limits.images}, got {wanted.n}", param="n")
        for name in ("prompt", "negative_prompt"):
            length, most = len(getattr(wanted, name)), limits.prompt_characters
            if length > most:
                raise RefusedError(400, f"{name}: {length} characters are more than the {most} allowed", param=name)
        if not self.engine.guides:
            for name, nothing in (("guidance_scale", 1.0), ("negative_prompt", "")):
                if name in wanted.model_fields_set and getattr(wanted, name) != nothing:
                    raise RefusedError(400, f"{name}: this server draws without guidance; leave it out", param=name)
        if wanted.stream and wanted.n != 1:
            raise RefusedError(400, f"n: with stream it must be 1, got {wanted.n}", param="n")
        if wanted.partial_images and not wanted.stream:
            raise RefusedError(400, "partial_images: goes with stream=true", param="partial_images")

    def _size(self) -> tuple[tuple[int, int] | None, str]:
        """(height, width), None for the home size, and the size as OpenAI writes it: WIDTHxHEIGHT."""
        tokenizer, wanted = self.model.tokenizer, self.wanted.size
        home = f"{tokenizer.image_size}x{tokenizer.image_size}"
        if wanted in (None, "auto", home):
            return None, home
        if (sides := re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", wanted)) is None:
            raise RefusedError(400, f"size: expected WIDTHxHEIGHT, such as {home}, got {wanted!r:.40}", param="size")
        if tokenizer.resampler is None:
            raise RefusedError(400, f"size: this model draws {home} alone, got {wanted!r:.40}", param="size")
        height, width, most = int(sides[2]), int(sides[1]), tokenizer.config.max_pixels
        if height * width > most:  # larger ones would only be enlarged
            raise RefusedError(400, f"size: {wanted} are more than the {most} pixels allowed", param="size")
        return (height, width), wanted

    async def pictures(self) -> AsyncIterator[Picture]:
        """As they come; whoever stops reading gives the rows back."""
        left, loop, seconds = self.wanted.n, asyncio.get_running_loop(), self.engine.limits.seconds
        end = loop.time() + seconds
        try:
            while left:
                news = await asyncio.wait_for(self._news.get(), end - loop.time())
                if isinstance(news, Exception):
                    raise news
                left -= news.length == self.num_tokens
                yield news
        except TimeoutError:
            raise too_late(seconds) from None
        finally:
            self.leave()

    def leave(self) -> None:
        """Nobody waits for its pictures any more; after the last one it changes nothing."""
        self.engine.leave(self.ticket)

    async def answer(self) -> ImagesResponse:
        """All images at once."""
        done: dict[int, ImageData] = {}
        async for picture in self.pictures():
            if picture.length == self.num_tokens:
                done[picture.number] = self._data(picture)
        return ImagesResponse(
            created=self.created,
            data=[done[number] for number in sorted(done)],
            output_format=self.format,
            size=self.side,
            usage=self.usage,
        )

    def _data(self, picture: Picture) -> ImageData:
        encoded, seed = to_base64(picture.image, self.format), self.seed + picture.number
        if self.wanted.response_format == "url":
            return ImageData(url=data_url(encoded, self.format), seed=seed)
        return ImageData(b64_json=encoded, seed=seed)

    @property
    def usage(self) -> Usage:
        """Of all images."""
        return Usage.of(self.text_tokens, self.num_tokens * self.wanted.n)

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events: partial images, then the image, or an error."""
        index = 0
        try:
            async for picture in self.pictures():
                if picture.length == self.num_tokens:
                    yield _event(
                        "image_generation.completed", self._shown(picture) | {"usage": self.usage.model_dump()}
                    )
                else:
                    yield _event(
                        "image_generation.partial_image", self._shown(picture) | {"partial_image_index": index}
                    )
                    index += 1
        except (RefusedError, InputError) as error:
            refusal = error if isinstance(error, RefusedError) else RefusedError(400, str(error))
            yield _event("error", refusal.body)

    def _shown(self, picture: Picture) -> dict[str, Any]:
        return {
            "b64_json": to_base64(picture.image, self.format), "created_at": self.created, "size": self.side,
            "quality": "auto", "background": "opaque", "output_format": self.format, "seed": self.seed,
            "num_tokens": picture.length,
        }  # fmt: skip


def partial_lengths(num_tokens: int, count: int) -> list[int]:
    """Tokens of partial images, evenly apart, without the last one; fewer than `count` where there are not so many."""
    lengths = {round(num_tokens * (i + 1) / (count + 1)) for i in range(count)}
    return sorted(lengths & set(range(1, num_tokens)))


def _event(kind: str, content: Event) -> bytes:
    body = content if kind == "error" else {"type": kind} | content
    return f"event: {kind}\ndata: {json.dumps(body)}\n\n".encode()
