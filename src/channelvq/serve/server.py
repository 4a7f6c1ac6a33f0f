"""The server as a process: address, key, and how it begins and ends."""

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from channelvq.car.model import CAR
from channelvq.errors import InputError
from channelvq.serve.api import build_app
from channelvq.serve.backend import Backend
from channelvq.serve.limits import Limits

CONNECTIONS = 1024  # at once; more are answered with 503
SECONDS_FOR_A_HEAD = 10.0  # in which a client must have sent the lines before the body
SHORTEST_KEY = 16  # characters


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that does not wait for ever for a request's head; uvicorn only limits the wait for its first byte."""

    _until_head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client came."""
        super().connection_made(transport)
        self._expect_head()

    def on_response_complete(self) -> None:
        """An answer is sent; the next request may come on the same connection."""
        super().on_response_complete()
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It went."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._stop_waiting()
        self._until_head = self.loop.call_later(SECONDS_FOR_A_HEAD, self._head_is_late)

    def _stop_waiting(self) -> None:
        if self._until_head is not None:
            self._until_head.cancel()

    def _head_is_late(self) -> None:
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()


def read_key(path: Path) -> str:
    """The key in a file that only its owner can read; InputError for any other."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected a key as text") from None
    if len(key) < SHORTEST_KEY or not key.isascii() or any(c.isspace() for c in key):
        raise InputError(
            f"{path}: expected a key of at least {SHORTEST_KEY} ASCII characters on one line, such as that of "
            "`openssl rand -hex 32`"
        )
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError(f"{path}: others can read this key; run `chmod 600 {path}`")
    return key


def configure(model: CAR | Backend, name: str, host: str, port: int, limits: Limits, key: str | None) -> uvicorn.Config:
    """How uvicorn runs it. On SIGTERM it takes no new requests and finishes those it has."""
    return uvicorn.Config(
        build_app(model, name, limits, key),
        host=host,
        port=port,
        http=PatientProtocol,
        ws="none",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(limits.seconds) + 1,
        server_header=False,
        access_log=False,  # /metrics counts; prompts and addresses are nobody's business
        log_level="warning",
    )


def serve(model: CAR | Backend, name: str, host: str, port: int, limits: Limits, key: str | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    uvicorn.Server(configure(model, name, host, port, limits, key)).run()
