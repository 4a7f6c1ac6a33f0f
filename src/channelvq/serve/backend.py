"""Another server that runs the exported language model, by OpenAI's completions API: vLLM, SGLang, llama.cpp, ...

    tokens and marker --POST /v1/completions, a stream--> "<|image_7|>" "<|image_42|>" ... --> 7, 42, ...

What it answers is not trusted: bounded in bytes and time, no redirect is followed, and all but the image tokens that
were asked for is an error.
"""

import asyncio
import json
import logging
import re
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import httpx
from anyio.from_thread import start_blocking_portal

from channelvq.car.exported import Exported, ImageIds
from channelvq.car.slots import Drawing
from channelvq.errors import InputError
from channelvq.files import parse_json
from channelvq.serve.errors import RefusedError

_ADDRESS = re.compile(r"https?://[^\s/?#@]+")
_SECONDS_TO_CONNECT = 5.0
_BYTES, _BYTES_OF_A_TOKEN = 2**20, 2**13  # of an answer
_NEVER = -100.0  # the least bias of OpenAI's API
_NOT_TAKEN = "backend_refused"  # perhaps for a name that it does not know
_log = logging.getLogger("channelvq.serve")
Tell = Callable[[list[int] | RefusedError], object]


class Backend:
    """The language model of an export on another server.

    address: http://HOST:PORT. model: its name there; None: the only one that it lists. key: for `Authorization:
    Bearer`. seconds: that an image may take. Asks the server once; raises InputError where it is not there or does not
    have the model.
    """

    def __init__(
        self, address: str, exported: Exported, *, model: str | None = None, key: str | None = None, seconds: float
    ) -> None:
        address = address.removesuffix("/").removesuffix("/v1")
        if not _ADDRESS.fullmatch(address):
            raise InputError(f"backend: expected http://HOST:PORT, got {address!r:.80}")
        self.exported, self.seconds = exported, seconds
        self.standard = False  # whether it takes the names of OpenAI's API alone, and prompts as text
        self._bias = {str(token): _NEVER for token in range(exported.layout.first_image_id)}
        headers = {"Accept-Encoding": "identity"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
        self._client = httpx.AsyncClient(
            base_url=address, headers=headers, trust_env=False, follow_redirects=False,
            timeout=httpx.Timeout(seconds, connect=min(seconds, _SECONDS_TO_CONNECT)),
            limits=httpx.Limits(max_connections=None),
        )  # fmt: skip
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.callback(self._portal.call, self._client.aclose)
            try:
                self.model = self._portal.call(self._find, model)
            except RefusedError as error:
                raise InputError(f"backend {address}: {error.message}") from None
            self._stack = stack.pop_all()

    def draw(self, drawing: Drawing, tell: Tell) -> "Future[None]":
        """Begin an image. tell: given its next ids as they come, or why there are none, on another thread.

        Cancel the future to stop.
        """
        return self._portal.start_task_soon(self._draw, drawing, tell)

    def __enter__(self) -> "Backend":
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of all connections."""
        self._stack.close()

    async def _find(self, wanted: str | None) -> str:
        """The name of the model."""
        lines = list[str]()
        async with asyncio.timeout(self.seconds):
            await self._exchange("GET", "/v1/models", None, _BYTES, lines.append)
        try:
            names = [str(model["id"]) for model in parse_json("\n".join(lines))["data"]]
        except (ValueError, TypeError, KeyError):
            raise RefusedError(502, "/v1/models does not list models as OpenAI's API does") from None
        if wanted is None and len(names) != 1:
            raise RefusedError(502, f"it lists {len(names)} models; name one by --backend-model")
        return wanted or names[0]

    async def _draw(self, drawing: Drawing, tell: Tell) -> None:
        try:
            async with asyncio.timeout(self.seconds):
                await self._ids(drawing, tell)
        except TimeoutError:
            tell(RefusedError(504, f"the backend did not draw the image within {self.seconds:g} seconds"))
        except InputError as error:
            _log.warning("the backend wrote %s", error)
            tell(RefusedError(502, f"the backend wrote {error}; it must serve what `cvq export` wrote"))
        except RefusedError as error:
            tell(error)
        except Exception:
            _log.exception("the answer of the backend could not be read")
            tell(RefusedError(502, "the answer of the backend could not be read"))

    async def _ids(self, drawing: Drawing, tell: Tell) -> None:
        """The last id is told when the answer has ended well, the others as they come."""
        ids, told = ImageIds(self.exported.layout, drawing.num_tokens), 0

        def take(line: str) -> None:
            nonlocal told
            name, _, data = line.partition(":")
            if name == "data" and data.strip() != "[DONE]":
                ids.add(_text(data))
                tell(ids.ids[told : drawing.num_tokens - 1])
                told = min(len(ids.ids), drawing.num_tokens - 1)

        await self._ask(drawing, take)
        tell(ids.end()[told:])

    async def _ask(self, drawing: Drawing, take: Callable[[str], None]) -> None:
        """A server that does not know what is beside OpenAI's API is asked again without it, from then on at once."""
        most = _BYTES + drawing.num_tokens * _BYTES_OF_A_TOKEN
        if not self.standard:
            try:
                await self._exchange("POST", "/v1/completions", self._body(drawing, standard=False), most, take)
                return
            except RefusedError as error:
                if error.code != _NOT_TAKEN:
                    raise
        if drawing.settings.top_k:
            raise RefusedError(400, "top_k: the backend does not take it; leave it out", param="top_k")
        await self._exchange("POST", "/v1/completions", self._body(drawing, standard=True), most, take)
        self.standard = True

    def _body(self, drawing: Drawing, *, standard: bool) -> dict[str, Any]:
        settings, (tokens, text) = drawing.settings, self.exported.prompt(drawing.text)
        body: dict[str, Any] = {
            "model": self.model, "prompt": text if standard else tokens, "max_tokens": drawing.num_tokens,
            "temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed % 2**31, "stream": True,
            "logit_bias": self._bias,
        }  # fmt: skip
        # Said even where they do nothing: llama.cpp has other defaults.
        return body if standard else body | {"top_k": settings.top_k or -1, "min_p": 0.0}

    async def _exchange(self, method: str, path: str, body: Any, most: int, take: Callable[[str], object]) -> None:
        """The lines of an answer of at most so many bytes, as they come; RefusedError where it fails."""
        try:
            async with self._client.stream(method, path, json=body) as answer:
                if answer.status_code != 200:
                    raise _not_200(answer.status_code)
                if body is not None and "text/event-stream" not in answer.headers.get("content-type", ""):
                    raise RefusedError(502, "the backend did not answer with a stream of events")
                read, rest = 0, b""
                async for part in answer.aiter_bytes():
                    read += len(part)
                    if read > most:
                        raise RefusedError(502, f"the backend's answer is larger than {most} bytes")
                    *lines, rest = (rest + part).split(b"\n")
                    for line in lines:
                        take(line.decode(errors="replace"))
                take(rest.decode(errors="replace"))
        except httpx.TimeoutException:
            raise RefusedError(504, "the backend did not answer in time") from None
        except httpx.ConnectError:
            raise RefusedError(502, "nothing answers at the backend's address") from None
        except httpx.HTTPError as error:
            _log.warning("the backend: %r", error)
            raise RefusedError(502, "the connection to the backend broke") from None


def _text(data: str) -> str:
    """Of one event."""
    try:
        event = parse_json(data)
        if isinstance(event, dict) and "error" in event:
            _log.warning("the backend: %s", json.dumps(event["error"])[:1000])
            raise RefusedError(502, "the backend failed to draw this image")
        texts = [choice["text"] for choice in event["choices"]]
        return "".join(texts)
    except (ValueError, TypeError, KeyError):
        raise RefusedError(502, "the backend's answer is not that of OpenAI's completions API") from None


def _not_200(status: int) -> RefusedError:
    if status in (429, 503):
        return RefusedError(503, "the backend is busy; try again")
    if status in (401, 403):
        return RefusedError(502, "the backend does not accept our key (--backend-key-file)")
    return RefusedError(502, f"the backend answered {status}", code=_NOT_TAKEN if status in (400, 422) else None)
