"""States of the whole process that a computation needs, where several threads compute at once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager


def shared(state: Callable[[], AbstractContextManager[object]]) -> Callable[[], AbstractContextManager[None]]:
    """A state for the length of a with-block: the first thread that wants it sets it, the last one restores it.

    Each for itself would take what another has set for the state before, and leave it behind.
    """
    lock, kept, users = threading.Lock(), ExitStack(), 0

    @contextmanager
    def held() -> Iterator[None]:
        nonlocal users
        with lock:
            if users == 0:
                kept.enter_context(state())
            users += 1
        try:
            yield
        finally:
            with lock:
                users -= 1
                if users == 0:
                    kept.close()

    return held
