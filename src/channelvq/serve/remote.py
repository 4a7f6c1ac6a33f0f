"""Images that a `Backend` draws, in the place where the engine has `Slots` that draw here."""

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from channelvq.car.slots import Drawing
from channelvq.serve.backend import Backend
from channelvq.serve.errors import RefusedError

_SECONDS_OF_A_STEP = 0.05  # where nothing comes; the engine looks at what else there is after it


@dataclass(frozen=True)
class _Row:
    task: "Future[None]"
    came: deque[int | RefusedError] = field(default_factory=deque)


class Remote:
    """Up to `most` images at once, without guidance, which completions APIs do not have."""

    guided = False

    def __init__(self, backend: Backend, most: int) -> None:
        self.backend, self.most = backend, most
        self._rows: dict[Drawing, _Row] = {}
        self._news: SimpleQueue[tuple[Drawing, list[int] | RefusedError]] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def free(self) -> int:
        """Images that can join."""
        return self.most - len(self)

    def join(self, drawing: Drawing) -> None:
        """Ask the backend for it."""
        self._rows[drawing] = _Row(self.backend.draw(drawing, lambda news: self._news.put((drawing, news))))

    def leave(self, drawing: Drawing) -> None:
        """Give its place back, done or not; one that is not here is no error."""
        if (row := self._rows.pop(drawing, None)) is not None:
            row.task.cancel()

    def step(self) -> list[Drawing]:
        """At most one more token for every image, of those that came; waits a moment where none did."""
        self._take()
        moved = [drawing for drawing, row in self._rows.items() if row.came]
        for drawing in moved:
            news = self._rows[drawing].came.popleft()
            if isinstance(news, RefusedError):
                drawing.error = news
            else:
                drawing.ids.append(news)
            if drawing.done:
                self.leave(drawing)
        return moved

    def _take(self) -> None:
        wait = not any(row.came for row in self._rows.values())
        while True:
            try:
                drawing, news = self._news.get(block=wait, timeout=_SECONDS_OF_A_STEP)
            except Empty:
                return
            wait = False
            if (row := self._rows.get(drawing)) is not None:
                row.came.extend([news] if isinstance(news, RefusedError) else news)
