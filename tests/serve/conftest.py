"""A server in a thread, on a port of its own, with a generator small enough to test."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import httpx
import pytest
from tests.car.conftest import make_car

from channelvq.car.model import CAR
from channelvq.car.slots import Drawing, Slots
from channelvq.serve.backend import Backend
from channelvq.serve.engine import Engine, Ticket
from channelvq.serve.limits import Limits

uvicorn = pytest.importorskip("uvicorn")


@dataclass
class Running:
    """url: without /v1."""

    url: str
    engine: Engine
    server: "uvicorn.Server"
    thread: threading.Thread

    def settles(self) -> bool:
        """Whether soon no row is taken and nothing waits."""
        return until(lambda: httpx.get(f"{self.url}/healthz").json() == {"status": "ok", "running": 0, "waiting": 0})


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


@contextmanager
def listening(config: "uvicorn.Config") -> Iterator[tuple[str, "uvicorn.Server", threading.Thread]]:
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", server, thread
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def running(model: CAR | Backend, limits: Limits, key: str | None = None) -> Iterator[Running]:
    from channelvq.serve.server import configure

    config = configure(model, "tiny", "127.0.0.1", 0, limits, key)
    with listening(config) as (url, server, thread):
        yield Running(url, config.app.state.engine, server, thread)  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def car() -> CAR:
    return make_car()


@pytest.fixture(scope="module")
def server(car: CAR) -> Iterator[Running]:
    with running(car, Limits()) as one:
        yield one


def tickets(engine: Engine) -> list[Ticket]:
    """Of all images that run or wait."""
    return [ticket for ticket, _ in (*engine._running.values(), *engine._waiting)]


@pytest.fixture
def start(car: CAR) -> Iterator[Callable[..., Running]]:
    """Starts a server with limits of its own."""
    with ExitStack() as stack:
        yield lambda key=None, **limits: stack.enter_context(running(car, Limits(**limits), key))


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No token is drawn until it is set."""
    step, event = Slots.step, threading.Event()

    def held(slots: Slots) -> list[Drawing]:
        assert event.wait(60)
        return step(slots)

    monkeypatch.setattr(Slots, "step", held)
    yield event
    event.set()
