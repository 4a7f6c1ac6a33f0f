"""What a run shows while it goes: a live line on a terminal, plain lines elsewhere, and metrics.jsonl always."""

import json
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from channelvq.files import parse_json, write_text_atomically
from channelvq.terminal import plain, silence

# Its level decides what of a run people see; metrics.jsonl has everything at every level.
LOGGER = logging.getLogger("channelvq.train")
LOGGER.setLevel(logging.INFO)

Sink = Callable[[dict[str, float], int], None]


class _Console(Console):
    """Falls silent where its reader is gone (`cvq train ... | head`): a training goes on, and its figures are in files.

    rich's own would end the process.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        silence()


def tell(text: str, level: int = logging.INFO, console: _Console | None = None) -> None:
    """A line for people, where their level lets it through; before there is a progress to tell it."""
    console = console or _Console()
    if LOGGER.isEnabledFor(level):
        try:
            console.print(plain(text), highlight=False)
        except BrokenPipeError:  # of older rich, which leaves it to the caller
            console.on_broken_pipe()


class Progress:
    """Writes each record to metrics.jsonl and shows it; on other ranks than the main one it does nothing.

    sink: called with the same figures, named "train/psnr" and so on, and the step. A resumed run drops the records
    after its checkpoint, so that no step is in the file twice.
    """

    def __init__(self, steps: int, start_step: int, run_dir: Path, active: bool, sink: Sink | None = None) -> None:
        self.active, self.sink = active, sink
        self.steps, self.began = steps, (start_step, time.perf_counter())
        self.path = run_dir / "metrics.jsonl"
        self.console = _Console()
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(20), TimeElapsedColumn(), TextColumn("left"),
                   TimeRemainingColumn(), TextColumn("{task.fields[line]}", markup=False))  # fmt: skip
        self.logged = (start_step, time.perf_counter())
        self.bar = Bar(*columns, console=self.console, disable=not (active and self._live))
        self.row = self.bar.add_task("train", total=steps, completed=start_step, line="")
        if active:
            self._drop_after(start_step)

    @property
    def _live(self) -> bool:
        return self.console.is_terminal and LOGGER.isEnabledFor(logging.INFO)

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if parse_json(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):  # the line that was being written when the run was killed
                continue
        text = "".join(line + "\n" for line in kept)
        write_text_atomically(self.path, text)

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def log(self, step: int, figures: dict[str, float], batch_size: int) -> None:
        """One record of training figures, with the speed since the last one."""
        before, since = self.logged
        self.logged = (step, time.perf_counter())
        speed = (step - before) * batch_size / (self.logged[1] - since)
        self._record("train", step, figures | {"images_per_second": speed})

    def log_evaluation(self, step: int, figures: dict[str, float]) -> None:
        """One record of held-out figures; the time that they took does not count as training."""
        self.logged = (step, time.perf_counter())
        self._record("evaluate", step, figures)

    def say(self, text: str, level: int = logging.INFO) -> None:
        """A line for people only; level: as for `logging`."""
        if self.active:
            tell(text, level, self.console)

    def _record(self, kind: str, step: int, figures: dict[str, float]) -> None:
        if not self.active:
            return
        record: dict[str, Any] = {"kind": kind, "step": step} | {k: float(f"{v:.6g}") for k, v in figures.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.sink is not None:
            self.sink({f"{kind}/{key}": value for key, value in figures.items()}, step)
        line = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        if self._live and kind == "train":
            self.bar.update(self.row, completed=step, line=line)
        else:
            self.say(f"{kind} step {step}: {line}" + (self._left(step) if kind == "train" else ""))

    def _left(self, step: int) -> str:
        """The time that the steps to come take, if they take what those of this sitting took, evaluations and all."""
        first, began = self.began
        if step in (first, self.steps):
            return ""
        seconds = (time.perf_counter() - began) / (step - first) * (self.steps - step)
        return f"  left {timedelta(seconds=round(seconds))}"
