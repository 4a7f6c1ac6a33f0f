"""`python -m lab bench gpu`, which scripts/gpu_check.sh calls: what one GPU does with this project, in eight minutes.

Each part is a process of its own with a limit of its own: one that fails, hangs or spoils the GPU's context for all
that comes after stops no other, and its error is in the result.
"""

import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from lab.bench.timing import machine

if TYPE_CHECKING:  # a study loads all that trains, which the processes of the parts do
    from lab.study import Tables

# By name: seconds of all LIMIT (what a part leaves, later ones have), the function of gpu_parts, its further arguments,
# and whether it needs a GPU.
PARTS: dict[str, tuple[float, str, dict[str, Any], bool]] = {
    "lookup": (50, "lookup", {}, False),
    "tokenizer step": (60, "tokenizer_step", {}, False),
    "generator step": (65, "generator_step", {}, False),
    "equal ids": (45, "ids", {}, False),
    "sampling": (100, "generation", {}, False),
    "generator step, compiled": (70, "generator_step", {"compiled": True}, True),
    "tokenizer step, compiled": (90, "tokenizer_step", {"compiled": True}, True),
}
LIMIT = sum(share for share, *_ in PARTS.values())
NOT_MEASURED = "not measured"
NO_GPU = f"{NOT_MEASURED}: torch finds no CUDA GPU here"


def run(device: str, peak: float, limit: float, path: Path | None, *, tiny: bool = False) -> dict[str, Any]:
    """Measure all parts and write the result, after every part. device: cuda, or cpu, which `tiny` makes bearable.

    peak: TFLOP/s of the GPU in bfloat16. limit: seconds of everything. Where there is no GPU to measure, every part
    says so.
    """
    records: list[dict[str, Any]] = []
    result = {"protocol": _protocol(device, peak, limit, tiny), "records": records}
    missing = device == "cuda" and not torch.cuda.is_available()
    end = time.monotonic()
    for name, (share, function, more, needs_gpu) in PARTS.items():
        begin, figures, error = time.monotonic(), [], NO_GPU
        end += share * limit / LIMIT
        if not missing and not (needs_gpu and device == "cpu"):
            work = partial(_measure, function, tiny, device, peak, more)
            figures, error = apart(work, end - begin)
        records.append({"part": name, "seconds": time.monotonic() - begin, "error": error, "figures": figures or []})
        if path is not None:
            write_json(path, result)
    return result


def _measure(function: str, tiny: bool, device: str, peak: float, more: dict[str, Any]) -> list[dict[str, Any]]:
    from lab.bench import gpu_parts

    return getattr(gpu_parts, function)(gpu_parts.TINY if tiny else gpu_parts.FULL, device, peak, **more)


def apart(work: Callable[[], Any], limit: float) -> tuple[Any, str | None]:
    """(what some work gives, None), or (None, why it gave nothing): done in a process, which is ended at the limit."""
    # A server that has imported everything and forks: a fork of this process could hang, a new one imports for long.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lab.bench.gpu_parts"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(limit) else (None, f"not done after {limit:.0f} seconds")
    except EOFError:
        process.join()
        return None, f"its process ended with code {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _send(connection: Connection, work: Callable[[], Any]) -> None:
    try:
        outcome = work(), None
    except Exception as error:
        outcome = None, f"{type(error).__name__}: {error}"[:1000]
    connection.send(outcome)


def _protocol(device: str, peak: float, limit: float, tiny: bool) -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties(0) if device == "cuda" and torch.cuda.is_available() else None
    return machine() | {
        "device": device,
        "gpu": None if gpu is None else f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB",
        "cuda": torch.version.cuda if gpu else None,
        "peak": peak if gpu else None,
        "limit": limit,
        "sizes": "tiny" if tiny else "full",
        "mfu": "FLOPs that the plan of the recipe counts over what the GPU could do in the time of a step",
        "over_the_product": "median over rounds of the time over that of the bare float32 product in the same round",
        "step": "median of steps after the first, the batch in memory",
    }


def failed(result: dict[str, Any]) -> list[str]:
    """Parts that should have given figures and did not."""
    return [r["part"] for r in result["records"] if r["error"] and not r["error"].startswith(NOT_MEASURED)]


def shown(result: dict[str, Any]) -> TextTable:
    """A row for each figure, or for each part that has none."""
    rows = []
    for record in result["records"]:
        if record["error"]:
            said = NOT_MEASURED if record["error"].startswith(NOT_MEASURED) else " ".join(record["error"].split())
            rows.append([record["part"], "", said[:120]])
        rows += [[record["part"], figure["case"], _figure(figure)] for figure in record["figures"]]
    gpu = result["protocol"]["gpu"] or "no GPU yet"
    return TextTable(("part", "case", "figure"), rows, note=f"{gpu}; torch {result['protocol']['torch']}.")


SHOWN: dict[str, Callable[[float], str]] = {
    "milliseconds": lambda x: f"{x:.2f} ms" if x < 100 else f"{x:.0f} ms",
    "over_the_product": lambda x: f"{x:.2f} x the product",
    "equal_to_float64": lambda x: f"{x:.2%} as float64",
    "peak_mib": lambda x: f"{x:.0f} MiB",
    "images_per_second": lambda x: f"{x:,.0f} images/s",
    "mfu": lambda x: f"MFU {x:.1%}",
    "peak_gib": lambda x: f"{x:.1f} GiB",
    "tokens_per_second": lambda x: f"{x:,.0f} tokens/s",
    "over_transformers": lambda x: f"{x:.2f} x transformers",
    "equal_to_plain": lambda x: f"{x:.2%} of ids as exact=False",
    "equal": lambda x: f"{x:.2%} of ids",
}


def _figure(figure: dict[str, Any]) -> str:
    return ", ".join(say(figure[name]) for name, say in SHOWN.items() if figure.get(name) is not None)


TABLES: "Tables" = {"gpu": ("gpu.json", shown)}
