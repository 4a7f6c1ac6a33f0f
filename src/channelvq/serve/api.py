"""The HTTP interface: OpenAI's images API, ids of images and back, health and metrics."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

import channelvq
from channelvq.car.model import CAR
from channelvq.car.slots import Slots
from channelvq.images import images_to_batch
from channelvq.images.encoded import to_base64
from channelvq.nn.modes import CHUNK_ROWS
from channelvq.serve.backend import Backend
from channelvq.serve.engine import Engine, Places
from channelvq.serve.errors import RefusedError, add_handlers, too_late
from channelvq.serve.gate import Gate
from channelvq.serve.images import Job
from channelvq.serve.limits import Limits
from channelvq.serve.metrics import Metrics
from channelvq.serve.pictures import from_base64
from channelvq.serve.remote import Remote
from channelvq.serve.schemas import (
    DetokenizeRequest,
    DetokenizeResponse,
    ImageData,
    ImageRequest,
    ImagesResponse,
    Model,
    Models,
    TokenizeRequest,
    TokenizeResponse,
)

_GONE = 499  # what nginx logs for a client that went away; nobody reads it
_SECONDS_BETWEEN_LOOKS = 0.1
Result = TypeVar("Result")


def build_app(model: CAR | Backend, name: str, limits: Limits | None = None, key: str | None = None) -> FastAPI:
    """The server of a generator, as an ASGI application.

    model: draws here, or elsewhere; a backend is the caller's to close. name: of the model, for clients. key: what they
    must send as their API key; None asks for none. Raises InputError for a backbone whose images cannot join others
    (`car.slots`).
    """
    limits, metrics = limits or Limits(), Metrics()
    whole = model.exported if isinstance(model, Backend) else model
    engine = Engine(whole, limits, metrics, partial(_places, model, limits.batches))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)  # what runs is finished first

    app = FastAPI(title="channelvq", version=channelvq.__version__, lifespan=lifespan)
    app.state.engine, app.state.name = engine, name
    add_handlers(app)
    _add_images(app, engine)
    _add_tokens(app, engine)
    _add_rest(app, engine, metrics)
    app.add_middleware(Gate, limits=limits, metrics=metrics, key=key)
    return app


def _places(model: CAR | Backend, batches: int) -> Sequence[Places]:
    if isinstance(model, Backend):
        return [Remote(model, batches * CHUNK_ROWS)]
    return [Slots(model, guided) for guided in (False, True) for _ in range(batches)]


def _add_images(app: FastAPI, engine: Engine) -> None:
    @app.post("/v1/images/generations", response_model=ImagesResponse, response_model_exclude_none=True)
    async def generate(wanted: ImageRequest, request: Request) -> Response | ImagesResponse:
        """Draw images for a prompt; with `stream`, as server-sent events."""
        _check_model(app, wanted.model)
        job = Job(engine, wanted)
        if wanted.stream:
            return _Events(job)
        return await _while_wanted(request, job.answer, job.leave)


def _add_tokens(app: FastAPI, engine: Engine) -> None:
    tokenizer, limits = engine.model.tokenizer, engine.limits

    @app.post("/v1/tokenize")
    async def tokenize(wanted: TokenizeRequest) -> TokenizeResponse:
        """Image files -> ids."""
        _check_model(app, wanted.model)
        _check_count("images", len(wanted.images), limits.images)
        files = [from_base64(text, number) for number, text in enumerate(wanted.images)]
        batch = await asyncio.to_thread(images_to_batch, files, size=tokenizer.image_size)
        ids = await _computed(engine, lambda: tokenizer.tokenize(batch).tolist())
        return TokenizeResponse(ids=ids, num_tokens=tokenizer.num_tokens, codebook_size=tokenizer.codebook_size)

    @app.post("/v1/detokenize", response_model_exclude_none=True)
    async def detokenize(wanted: DetokenizeRequest) -> DetokenizeResponse:
        """Ids, all of an image or any number of its first ones -> image files."""
        _check_model(app, wanted.model)
        _check_count("ids", len(wanted.ids), limits.images)
        pictures = await _computed(engine, lambda: tokenizer.detokenize_prefixes(wanted.ids))
        return DetokenizeResponse(data=[ImageData(b64_json=to_base64(p, wanted.output_format)) for p in pictures])


def _add_rest(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    started = int(time.time())

    @app.get("/v1/models")
    async def models() -> Models:
        """The one model that is served."""
        return Models(data=[Model(id=app.state.name, created=started)])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Model:
        """The same by its name."""
        _check_model(app, name)
        return Model(id=app.state.name, created=started)

    @app.get("/healthz")
    async def health() -> dict[str, str | int]:
        """Whether images can be drawn, and how many run and wait."""
        if not engine.alive:
            raise RefusedError(503, "the server does not draw any more; restart it")
        return {"status": "ok", **engine.counts()}

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Counts in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class _Events(StreamingResponse):
    """A stream that gives its rows back however it ends."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.leave()


async def _computed(engine: Engine, work: Callable[[], Result]) -> Result:
    """The result of work on the device's thread."""
    seconds = engine.limits.seconds
    try:
        return await asyncio.wait_for(asyncio.wrap_future(engine.call(work)), seconds)
    except TimeoutError:
        raise too_late(seconds) from None


async def _while_wanted(
    request: Request, work: Callable[[], Awaitable[Result]], leave: Callable[[], None]
) -> Result | Response:
    """The result, unless the client goes away before it is there."""
    task = asyncio.ensure_future(work())
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_SECONDS_BETWEEN_LOOKS)
            if not task.done() and await request.is_disconnected():
                return Response(status_code=_GONE)
        return task.result()
    finally:
        task.cancel()
        leave()


def _check_model(app: FastAPI, name: str | None) -> None:
    if name is not None and name != app.state.name:
        raise RefusedError(
            404, f"model: {name!r:.80} is not served here, {app.state.name!r} is", param="model", code="model_not_found"
        )


def _check_count(param: str, count: int, most: int) -> None:
    if count > most:
        raise RefusedError(400, f"{param}: expected 1..{most} in a request, got {count}", param=param)
