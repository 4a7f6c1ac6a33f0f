"""How inputs are fuzzed: whatever is given is taken or refused with an InputError, in bounded time and memory."""

import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channelvq.errors import InputError

T = TypeVar("T")
KINDS = ("recipe", "overrides", "settings", "manifest", "tokens", "checkpoint", "weights", "shard", "image",
         "token-shards", "cvq")  # fmt: skip
SECONDS = float(os.environ.get("FUZZ_SECONDS", "20")) / len(KINDS)  # of each kind
COUNT = int(os.environ.get("FUZZ_INPUTS", "0")) or None  # of each kind; None: by time
LONGEST = 5.0  # seconds
MOST_MEMORY = 600 * 2**20  # bytes that one kind may add to the peak of the process

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([10**12, -1, 2**63, 2**64, 1e308, "", "nan", "\0", "\ud800", [], {}]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def peak() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass
class Hammered:
    """How many inputs of a kind were given, and how many of them were refused; longest: seconds of one of them.

    memory: bytes that were added to the peak of the process.
    """

    kind: str
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    memory: int = 0


def taken_or_refused(call: Callable[[T], object], given_: T) -> bool:
    """Whether it was taken; any other error than an InputError goes on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(given_)
        except InputError:
            return False
    return True


def hammer(kind: str, inputs: st.SearchStrategy[T], call: Callable[[T], object], count: int | None = COUNT) -> Hammered:
    """Give the call one input after the other, `count` of them, or until the time of its kind is up."""
    assert kind in KINDS
    found, before, began = Hammered(kind), peak(), 0.0

    def enough() -> bool:
        return found.inputs >= count if count else time.monotonic() - began > SECONDS

    # Never the same inputs again, which is what hypothesis does where CI is set.
    @settings(max_examples=200, deadline=None, database=None, derandomize=False,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(inputs)
    def some(one: T) -> None:
        nonlocal began
        if not found.inputs:  # what the first one imports is not its own time
            taken_or_refused(call, one)
            began = time.monotonic()
        elif enough():
            return
        start = time.monotonic()
        found.refused += not taken_or_refused(call, one)
        took = time.monotonic() - start
        assert took < LONGEST, f"{took:.1f} s for one input"
        found.inputs, found.longest = found.inputs + 1, max(found.longest, took)

    some()
    while not enough():
        some()
    found.seconds, found.memory = time.monotonic() - began, peak() - before
    print(f"{kind}: {found.inputs} inputs, {found.refused} refused, peak memory +{found.memory / 2**20:.0f} MiB")
    assert found.memory < MOST_MEMORY
    return found


@st.composite
def damaged(draw: Any, good: Sequence[bytes]) -> bytes:
    """A good file of which some bytes are others, are missing, or stand twice; at times no such file at all."""
    content = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        size = draw(st.sampled_from([1, 2, 4, 8, 64, 1024]))
        match draw(st.sampled_from(["flip", "put", "cut", "repeat", "end"])):
            case "flip" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "put":
                content[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=8))
            case "cut":
                del content[at : at + size]
            case "repeat":
                content[at:at] = content[at : at + size]
            case "end":
                del content[at:]
    return bytes(content) if draw(st.integers(0, 15)) else draw(st.binary(max_size=64))


@st.composite
def with_other_value(draw: Any, good: Any) -> Any:
    """Plain data of which one value, or one key, is another; or any other data."""
    if not draw(st.integers(0, 7)) or not good or not isinstance(good, dict | list):
        return draw(PLAIN)
    where = draw(st.sampled_from(sorted(good) if isinstance(good, dict) else range(len(good))))
    changed = good.copy()
    changed[where] = draw(with_other_value(good[where]))
    if isinstance(changed, dict) and not draw(st.integers(0, 7)):
        changed[draw(st.text(max_size=8))] = changed.pop(where)
    return changed
