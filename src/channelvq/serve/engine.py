"""The one thread that computes: it draws the images of all requests together and runs other work between two tokens.

    submit --> waiting --free row--> Places --a token a step--> decoded, 8 at a time --> on_image of its ticket
    call   --> work, between two steps

Places are `Slots`, which draw here, or a `Remote`, whose images another server draws.

One thread for a device: two would only take turns, and an image's order of computation would be theirs to decide.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from PIL import Image

from channelvq.car.request import TextToImage
from channelvq.car.slots import Drawing
from channelvq.errors import InputError
from channelvq.nn.modes import CHUNK_ROWS
from channelvq.serve.errors import RefusedError, queue_full
from channelvq.serve.limits import Limits
from channelvq.serve.metrics import Metrics

# A picture waits for so many steps for others to be decoded with it: 8 take the time of one.
DECODE_EVERY = 4
_log = logging.getLogger("channelvq.serve")
Result = TypeVar("Result")


class Places(Protocol):
    """Where images are drawn, some at a time; see `Slots`, which has errors and shapes."""

    guided: bool

    def __len__(self) -> int: ...

    @property
    def free(self) -> int:
        """Images that can join."""
        ...

    def join(self, drawing: Drawing) -> None:
        """Begin an image."""
        ...

    def leave(self, drawing: Drawing) -> None:
        """Give its place back."""
        ...

    def step(self) -> list[Drawing]:
        """Images that have one more token now, or an error; those that are done have left."""
        ...


@dataclass(eq=False)
class Ticket:
    """The images of one request. partial: lengths at which they are also shown. size: (height, width); None: home.

    on_image: told (number of the image, tokens so far, picture), on the engine's thread. on_error: told once.
    """

    drawings: Sequence[Drawing]
    on_image: Callable[[int, int, Image.Image], None]
    on_error: Callable[[Exception], None]
    partial: frozenset[int] = frozenset()
    size: tuple[int, int] | None = None
    since: float = field(default_factory=time.monotonic)
    gone: bool = False
    seen: bool = False  # whether an image was shown


@dataclass(frozen=True)
class _Shown:
    """A picture to decode: the tokens that an image had."""

    ticket: Ticket
    number: int
    ids: tuple[int, ...]


class Engine:
    """Draws for tickets until it is closed. places: makes what draws, again after a step that failed."""

    def __init__(
        self, model: TextToImage, limits: Limits, metrics: Metrics, places: Callable[[], Sequence[Places]]
    ) -> None:
        self.model, self.limits, self.metrics = model, limits, metrics
        self._new_places, self.places = places, places()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Ticket, int]] = deque()
        self._work: deque[Callable[[], None]] = deque()
        self._running: dict[Drawing, tuple[Ticket, int]] = {}  # the engine's thread alone
        self._shown: list[_Shown] = []
        self._steps = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="channelvq-engine", daemon=True)
        self._thread.start()

    # From any thread

    def submit(self, ticket: Ticket) -> None:
        """Let its images wait for rows; raises RefusedError where too many wait, or the server is stopping."""
        with self._changed:
            self._check_open()
            if len(self._waiting) + len(ticket.drawings) > self.limits.waiting:
                raise queue_full(len(self._waiting))
            self._waiting.extend((ticket, number) for number in range(len(ticket.drawings)))
            self.metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def leave(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: its rows are free from the next token on."""
        with self._changed:
            ticket.gone = True
            self._changed.notify()

    def call(self, function: Callable[[], Result]) -> "Future[Result]":
        """Run a function on the device's thread, between two tokens."""
        future: Future[Result] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:
                    future.set_exception(error)

        with self._changed:
            self._check_open()
            if len(self._work) >= self.limits.waiting:
                raise queue_full(len(self._work))
            self._work.append(work)
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finish all that was submitted, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it still computes."""
        return self._thread.is_alive()

    def counts(self) -> dict[str, int]:
        """How many images run and wait."""
        return {"running": sum(map(len, self.places)), "waiting": len(self._waiting)}

    @property
    def guides(self) -> bool:
        """Whether it can draw with guidance."""
        return any(places.guided for places in self.places)

    def _check_open(self) -> None:
        if self._closing or not self.alive:
            raise RefusedError(503, "the server is stopping; try again")

    # The engine's thread

    def _run(self) -> None:
        while self._next():
            try:
                self._step()
            except Exception as error:  # whatever it was, the requests that it met must be told, and others served
                _log.exception("a step failed")
                self._fail_all(error)

    def _next(self) -> bool:
        """Wait until there is something to do; False once there is nothing and will be nothing."""
        with self._changed:
            while True:
                work, self._work = self._work, deque()
                if work or self._waiting or self._running or self._shown:
                    break
                if self._closing:
                    return False
                self._changed.wait()
        for one in work:
            one()
        return True

    def _step(self) -> None:
        self._drop_those_gone()
        self._let_in()
        moved = [drawing for places in self.places if len(places) for drawing in places.step()]
        self.metrics.tokens.inc(len(moved))
        self._collect(moved)
        self._steps += 1
        if len(self._shown) >= CHUNK_ROWS or self._steps % DECODE_EVERY == 0 or not moved:
            self._show()

    def _drop_those_gone(self) -> None:
        for drawing, (ticket, _) in list(self._running.items()):
            if ticket.gone:
                self.metrics.dropped.inc()
                self._forget(drawing)
        self._shown = [shown for shown in self._shown if not shown.ticket.gone]

    def _forget(self, drawing: Drawing) -> None:
        del self._running[drawing]
        for places in self.places:
            places.leave(drawing)

    def _let_in(self) -> None:
        """In the order of arrival, past those for whose kind of batch there is no row."""
        with self._changed:
            waiting, self._waiting = self._waiting, deque()
            for ticket, number in waiting:
                if ticket.gone:
                    self.metrics.dropped.inc()
                    continue
                drawing = ticket.drawings[number]
                place = next((p for p in self.places if p.guided == drawing.settings.guided and p.free), None)
                if place is None:
                    self._waiting.append((ticket, number))
                    continue
                place.join(drawing)
                self._running[drawing] = ticket, number
            self.metrics.waiting.set(len(self._waiting))
        self.metrics.running.set(len(self._running))

    def _collect(self, moved: Sequence[Drawing]) -> None:
        """Note the pictures that are due, and let go of what is done."""
        for drawing in moved:
            ticket, number = self._running[drawing]
            if drawing.error is not None:
                self._fail(ticket, drawing.error)
            elif drawing.done or len(drawing.ids) in ticket.partial:
                self._shown.append(_Shown(ticket, number, tuple(drawing.ids)))
            if drawing.done:
                self._forget(drawing)
        self.metrics.running.set(len(self._running))

    def _show(self) -> None:
        due, self._shown = self._shown[:CHUNK_ROWS], self._shown[CHUNK_ROWS:]
        if not due:
            return
        try:
            pictures = self._decoded(due)
        except Exception as error:
            _log.exception("pictures could not be decoded")
            for shown in due:
                self._fail(shown.ticket, _told(error))
            return
        for shown, picture in zip(due, pictures, strict=True):
            ticket, length = shown.ticket, len(shown.ids)
            if not ticket.seen:
                ticket.seen = True
                self.metrics.first.observe(time.monotonic() - ticket.since)
            if length == ticket.drawings[shown.number].num_tokens:
                self.metrics.images.inc()
            ticket.on_image(shown.number, length, picture)

    def _decoded(self, due: Sequence[_Shown]) -> list[Image.Image]:
        """Pictures of the home size together, those of another one each for itself."""
        tokenizer, home = self.model.tokenizer, [shown.ids for shown in due if shown.ticket.size is None]
        together = iter(tokenizer.detokenize_prefixes(home) if home else ())
        return [
            next(together) if shown.ticket.size is None
            else tokenizer.detokenize(torch.tensor([shown.ids]), size=shown.ticket.size)[0]
            for shown in due
        ]  # fmt: skip

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if not ticket.gone:
            ticket.gone = True
            ticket.on_error(error)

    def _fail_all(self, error: Exception) -> None:
        for ticket in {ticket for ticket, _ in self._running.values()} | {shown.ticket for shown in self._shown}:
            self._fail(ticket, _told(error))
        for drawing in list(self._running):
            self._forget(drawing)
        self._shown.clear()
        self.places = self._new_places()


def _told(error: Exception) -> Exception:
    """What a client may know of it."""
    return error if isinstance(error, InputError) else RefusedError(500, "the server failed to draw this image")
