"""What stands before the API: the key, the size of a body, the time to send it, and counting."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from hashlib import sha256

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from channelvq.serve.errors import RefusedError
from channelvq.serve.limits import Limits
from channelvq.serve.metrics import Metrics

BODIES_IN_MEMORY = 8  # of the largest size, or as many smaller ones as are as large
_OPEN = ("/healthz",)  # for whoever asks whether the server lives
_KNOWN = ("/v1/images/generations", "/v1/models", "/v1/tokenize", "/v1/detokenize", "/healthz", "/metrics")


class Gate:
    """ASGI middleware. key: what `Authorization: Bearer ...` must say; None lets everybody in."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, key: str | None) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.held = 0  # bytes of bodies in memory
        self.key = None if key is None else sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it before any of its body is looked at."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send, body = self._counting(scope, send), bytearray()
        try:
            self._check_key(scope)
            if await self._read(scope, receive, body):
                await self.app(scope, _replay(bytes(body), receive), send)
        except RefusedError as refusal:
            await refusal.response()(scope, receive, send)
        finally:
            self.held -= len(body)

    def _check_key(self, scope: Scope) -> None:
        if self.key is None or scope["path"] in _OPEN:
            return
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(sha256(given.strip()).digest(), self.key):
            raise RefusedError(401, "wrong or missing API key: send Authorization: Bearer KEY", code="invalid_api_key")

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> bool:
        """All of the body, in bounded memory and time; False where the client went away."""
        most = self.limits.body_bytes
        too_large = RefusedError(413, f"the body is larger than {most} bytes", code="body_too_large")
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > most:
            raise too_large
        more = True
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    part, more = message.get("body", b""), message.get("more_body", False)
                    body += part
                    self.held += len(part)
                    if len(body) > most:
                        raise too_large
                    if self.held > most * BODIES_IN_MEMORY:
                        raise RefusedError(503, "the server is busy with other large requests; try again")
        except TimeoutError:
            raise RefusedError(408, f"the body did not arrive within {self.limits.body_seconds:g} seconds") from None
        return True

    def _counting(self, scope: Scope, send: Send) -> Callable[[Message], Awaitable[None]]:
        path = scope["path"] if scope["path"] in _KNOWN else "other"  # or a stranger could fill the memory with names

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        return counted


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body again, for the app; after it the client's own messages, which tell that it is gone."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed
