"""Time as ratios: every method once in each round, so that whatever else the machine does meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from channelvq.evaluate import results as report
from channelvq.nn.processor import bfloat16_speedup

Name = TypeVar("Name")


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call, with all that it has left to a GPU."""
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def interleaved(methods: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, list[float]]:
    """Seconds of each method in each round."""
    times: dict[Name, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, work in methods.items():
            times[name].append(seconds(work))
    return times


def ratio(times: list[float], base: list[float]) -> float:
    """Median over rounds of the time over that of the base in the same round."""
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


def machine() -> dict[str, Any]:
    """Protocol entries: on what, with what."""
    return {
        "machine": f"{report.machine()}, products {bfloat16_speedup():.2g} times as fast in bfloat16 as in float32",
        "torch": torch.__version__,
        "git": report.git_revision(),
    }
