"""Work that goes on in a thread beside the training: at most one piece at a time, and none that is lost in silence."""

import threading
from collections.abc import Callable


class Background:
    """Inside `with`, a thread for one piece of work; its error is raised by the next call, and at the end.

    What is in work when another error ends the training is still done, so that a checkpoint is not lost with it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._join()
        if kind is None:
            self.check()

    def start(self, work: Callable[[], object]) -> None:
        """Begin; waits for what was begun before, and raises its error instead of beginning."""
        self.wait()

        def run() -> None:
            try:
                work()
            except Exception as error:  # whatever it is: the thread has nobody to tell
                self._error = error

        # A daemon: a process that has to end does not wait for other ranks that this thread waits for.
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error of work that has ended, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Until the work is done; raises its error."""
        self._join()
        self.check()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
