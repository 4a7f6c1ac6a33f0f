"""Ranks that watch each other: one that is gone is named with its step, and all the others stop within a minute.

Each rank tells a store that all of them reach, every BEAT seconds and by a thread, that it is there.
A rank that dies takes its peers' next collective operation with it (gloo), or leaves them waiting in it for ever (NCCL;
and where a machine hangs or loses its network, gloo too). In the first case the error that the peers get tells nobody
which rank it was; in the second there is none. Both end here: with an error that names the rank, or the end of the
process. What started the ranks (torchrun --max-restarts) may begin them again from the last checkpoint.
"""

import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from torch import distributed
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from channelvq.errors import LostRankError, reason
from channelvq.train.checkpoint import checkpoints

BEAT = 2.0  # seconds
LOST = 40.0  # without a word from a rank; a machine that swaps may be late by some seconds
SURE = 8.0  # the same once something has gone wrong
LOST_CODE = 70  # of a process that another rank's loss has ended


class Watch:
    """Inside `with`, for one of several ranks: `step` is where this one is. run_dir: the run, for its checkpoints.

    A RuntimeError inside, as collective operations raise it, becomes a LostRankError where a rank is found to be gone.
    Of one process nothing is watched. store: what all ranks reach; None: that of the process group.
    """

    def __init__(
        self, rank: int, ranks: int, run_dir: Path, step: int = 0, *, store: Store | None = None,
        leave: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.rank, self.ranks, self.run_dir, self.step = rank, ranks, run_dir, step
        self.leave = leave or self._leave
        self.seen: dict[int, tuple[bytes, float]] = {}  # a rank's last words, and since when
        self.ended = threading.Event()
        self.verdict: str | None = None
        self.patience = LOST
        self.thread = threading.Thread(target=self._beat, daemon=True)
        if ranks > 1:
            given = store or distributed.distributed_c10d._get_default_store()
            # A client of its own: waiting for another's answer would hold up this one. A name for each restart.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self.place = f"channelvq/watch/{attempt}"
            self.store: Store = given.clone()  # pyright: ignore[reportAttributeAccessIssue]
            self.store.set_timeout(timedelta(seconds=LOST))

    def __enter__(self) -> "Watch":
        if self.ranks > 1:
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if self.ranks > 1 and isinstance(error, RuntimeError) and (verdict := self._wait_for_verdict()):
                raise LostRankError(verdict) from None
        finally:
            self._end(well=kind is None)

    def _end(self, well: bool) -> None:
        self.ended.set()
        if self.ranks > 1:
            self.thread.join(LOST)
            if well:  # whoever is still at work need not look for this one
                with suppress(RuntimeError):
                    self.store.set(self._of(self.rank), "done")

    def _of(self, name: int | str) -> str:
        return f"{self.place}/{name}"

    def _wait_for_verdict(self) -> str | None:
        """What this rank, or another, finds out within a few seconds; its own thread goes on meanwhile."""
        self.patience = SURE
        end = time.monotonic() + SURE + 2 * BEAT
        while time.monotonic() < end and self.verdict is None and self.thread.is_alive():
            time.sleep(BEAT / 4)
        return self.verdict

    def _beat(self) -> None:
        number = 0
        while number == 0 or not self.ended.wait(BEAT):
            number += 1
            try:
                self.store.set(self._of(self.rank), f"{number} {os.getpid()} {platform.node()}")
                self._look(self.patience)
            except RuntimeError as error:  # the store went with the machine that held it
                what = f"rank 0 (or its machine) is lost at step {self.step + 1}: no store ({reason(error)})"
                self.verdict = self.verdict or self._sentence(what)
            if self.verdict is not None:
                # The main thread may be in an operation that never ends. It has a while to end by itself.
                if not self.ended.wait(SURE):
                    self.leave(self.verdict)
                return

    def _look(self, patience: float) -> None:
        """Take up what others found; or find out that a rank which was there has not been heard of for so long."""
        if self.store.check([self._of("lost")]):
            self.verdict = self.store.get(self._of("lost")).decode()
            return
        now = time.monotonic()
        for rank in range(self.ranks):
            if rank == self.rank or not self.store.check([self._of(rank)]):
                continue
            words = self.store.get(self._of(rank))
            if words == b"done":
                continue
            before, since = self.seen.get(rank, (b"", now))
            if words != before:
                self.seen[rank] = (words, now)
            elif now - since > patience:
                _, process, host = words.decode().split(" ", 2)
                # Ranks go from step to step together, so it was lost where this one is.
                found = self._sentence(f"rank {rank} (process {process} on {host}) is lost at step {self.step + 1}")
                self.verdict = self.store.compare_set(self._of("lost"), "", found).decode()  # the first finding counts
                return

    def _sentence(self, what: str) -> str:
        saved = checkpoints(self.run_dir)
        good = saved[-1] if saved else "none yet"
        return f"{what}; last checkpoint: {good}; all ranks stop, go on with train.resume=true"

    def _leave(self, verdict: str) -> None:
        print(f"error: {verdict}", file=sys.stderr, flush=True)
        os._exit(LOST_CODE)
