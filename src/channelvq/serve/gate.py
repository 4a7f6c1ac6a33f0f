"""What stands before the API: the key, the size of a body, the time to send it, and counting."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from hashlib import sha256

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from channelvq.serve.errors import RefusedError
from channelvq.serve.limits import Limits
from channelvq.serve.metrics import Metrics

_OPEN = ("/healthz",)  # for whoever asks whether the server lives
_KNOWN = ("/v1/images/generations", "/v1/models", "/v1/tokenize", "/v1/detokenize", "/healthz", "/metrics")


class Gate:
    """ASGI middleware. key: what `Authorization: Bearer ...` must say; None lets everybody in."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, key: str | None) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.key = None if key is None else sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it before any of its body is looked at."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = self._counting(scope, send)
        try:
            self._check_key(scope)
            body = await self._body(scope, receive)
        except RefusedError as refusal:
            await refusal.response()(scope, receive, send)
            return
        if body is not None:
            await self.app(scope, _replay(body, receive), send)

    def _check_key(self, scope: Scope) -> None:
        if self.key is None or scope["path"] in _OPEN:
            return
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(sha256(given.strip()).digest(), self.key):
            raise RefusedError(401, "wrong or missing API key: send Authorization: Bearer KEY", code="invalid_api_key")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """All of it, in bounded memory and time; None where the client went away."""
        most = self.limits.body_bytes
        too_large = RefusedError(413, f"the body is larger than {most} bytes", code="body_too_large")
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > most:
            raise too_large
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise RefusedError(408, f"the body did not arrive within {self.limits.body_seconds:g} seconds") from None
        return bytes(body)

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
