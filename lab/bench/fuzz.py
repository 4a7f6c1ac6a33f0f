"""`python -m lab bench fuzz`: so many damaged and absurd inputs of each kind, each kind in a process of its own.

How inputs are made, and what is done with them, is in tests/fuzz, where shorter runs of the same are tests.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from lab.bench.timing import machine
from lab.results import others
from lab.study import Tables

MINUTES = 120  # of one kind


def one(kind: str, count: int) -> dict[str, Any]:
    """A record of `count` inputs of a kind; raises what is not an InputError."""
    import os

    from tests.fuzz.hammer import hammer
    from tests.fuzz.kinds import INPUTS, calls

    with tempfile.TemporaryDirectory() as folder:
        os.environ["CHANNELVQ_CACHE"] = f"{folder}/cache"
        return asdict(hammer(kind, INPUTS[kind], calls(Path(folder))[kind], count))


def apart(kind: str, count: int) -> dict[str, Any]:
    """The same in a process of its own, so that its peak of memory is its own; InputError where an input fell."""
    code = f"import json; from lab.bench.fuzz import one; print(json.dumps(one({kind!r}, {count})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60 * MINUTES)
    if done.returncode:
        raise InputError(f"kind {kind}: {done.stderr[-4000:]}\nput the input into tests/fuzz/corpus and mend it")
    return json.loads(done.stdout.splitlines()[-1]) | {"tracebacks": 0}


def run(count: int, path: Path | None, only: list[str] | None = None) -> dict[str, Any]:
    """All kinds, written after each; only: these, and what is stored of the others stays."""
    from tests.fuzz.hammer import KINDS, LONGEST, MOST_MEMORY

    result: dict[str, Any] = {"protocol": {}, "records": []}
    result["protocol"] = machine() | {
        "inputs": count, "seconds_allowed": LONGEST, "memory_allowed": MOST_MEMORY,
        "memory": "bytes that a kind added to the peak of its process, its libraries loaded",
        "refused": "by an InputError; the others were taken. Anything else ends the bench",
    }  # fmt: skip
    if only and path is not None:
        result["records"] = others(path, "kind", only)
    for kind in only or KINDS:
        result["records"].append(apart(kind, count) | {"git": result["protocol"]["git"]})
        result["records"].sort(key=lambda row: KINDS.index(row["kind"]))
        if path is not None:
            write_json(path, result)
    return result


def shown(result: dict[str, Any]) -> TextTable:
    """A row a kind."""
    rows = [
        [row["kind"], f"{row['inputs']:,}", f"{row['refused']:,}", str(row["tracebacks"]), f"{row['longest']:.2f}",
         f"{row['memory'] / 2**20:.0f}"]
        for row in result["records"]
    ]  # fmt: skip
    headings = ("kind", "inputs", "refused in a line", "tracebacks", "longest, s", "memory, MiB")
    allowed = result["protocol"]
    note = (
        f"Allowed are {allowed['seconds_allowed']:.0f} s for an input and {allowed['memory_allowed'] / 2**20:.0f} MiB "
        "for a kind; what was not refused was taken. A traceback would have ended the run."
    )
    return TextTable(headings, rows, note=note)


TABLES: Tables = {"fuzz": ("fuzz.json", shown)}
