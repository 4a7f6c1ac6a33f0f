"""Stopping well: SIGTERM and SIGINT are noted, and the training loop ends after the step that it is in."""

import signal
from types import FrameType
from typing import Any


class StopSignals:
    """Inside `with`, `received` becomes the signal, and stays afterwards; the old handlers come back then."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        def stop(number: int, frame: FrameType | None) -> None:
            self.received = signal.Signals(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, stop)
            except ValueError:  # not in the main thread: the caller keeps its own handling
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
