"""`python -m lab bench restart`: a rank of two is killed in the middle of a training; what is said, and what goes on.

Two gloo processes by torchrun with --max-restarts 1, a tiny tokenizer with its moving average and discriminator.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.train.launch import OWN_STORE
from lab.bench.timing import machine
from lab.study import Tables

STEPS, KILLED_AT = 8, 5
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1")
SETTINGS = (
    "small/smoke", "model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8",
    "model.quantizer.codebook_size=16", "data.validation_images=4", "objective.start_images=8",
    "objective.adversarial={base_channels: 8, layers: 1, start_step: 0, adaptive: false}", "train.batch_size=4",
    "train.ema=0.9", "train.device=cpu", "train.precision=no", "train.log_every=1", "train.checkpoint_every=2",
    f"train.steps={STEPS}", "train.resume=true",
)  # fmt: skip


def run(path: Path | None) -> dict[str, Any]:
    """The drill, in a temporary folder; writes and returns its result."""
    with tempfile.TemporaryDirectory(prefix="restart-") as folder:
        record = drill(Path(folder) / "run")
    result = {"protocol": machine() | {"load": os.getloadavg()[0], "command": " ".join(["torchrun", *LAUNCH[2:]])},
              "records": [record]}  # fmt: skip
    if path is not None:
        write_json(path, result)
    return result


def drill(run_dir: Path, rank: int = 1) -> dict[str, Any]:
    """Train, kill that rank (SIGKILL) at step KILLED_AT, wait for the end. Seconds are since it was killed."""
    command = [sys.executable, *LAUNCH, "-m", "channelvq", "train", *SETTINGS, f"train.output_dir={run_dir}"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "400", OWN_STORE: "1"}
    lines, killed, named, on = list[str](), None, None, None
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if killed is None and f"step {KILLED_AT}:" in line:
                below = psutil.Process(process.pid).children()
                victim = next(child for child in below if child.environ().get("RANK") == str(rank))
                victim.send_signal(signal.SIGKILL)
                killed = time.monotonic()
            elif killed is not None and named is None and "is lost" in line:
                named = time.monotonic() - killed
            elif named is not None and on is None and killed is not None and re.search(r"step \d+:", line):
                on = time.monotonic() - killed
    if process.returncode or named is None or on is None:
        raise InputError(f"bench restart: torchrun ended with code {process.returncode}:\n" + "\n".join(lines[-40:]))
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    log = [_plain(line, run_dir) for line in lines if re.search(r"step \d+:|is lost|failed \(exitcode|done:", line)]
    return {"killed_at_step": KILLED_AT, "seconds_to_name": named, "seconds_to_next_step": on,
            "steps": [line["step"] for line in metrics if line["kind"] == "train"],
            "log": [line for line in log if line]}  # fmt: skip


def _plain(line: str, run_dir: Path) -> str:
    """A line of the log without what differs from machine to machine."""
    line = line.replace(str(run_dir), "run")
    line = re.sub(r"(step \d+: pixel \S+).*$", r"\1 ...", line)
    line = re.sub(r"\(process \d+ on [^)]*\)", "(process P on HOST)", line)
    line = re.sub(r"^.*failed \(exitcode: (-?\d+)\) local_rank: (\d+).*$", r"torchrun: rank \2 ended with \1", line)
    return re.sub(r" +", " ", line).strip()


def shown(result: dict[str, Any]) -> TextTable:
    """The log, a row a line, and the times."""
    record = result["records"][0]
    rows = [[line] for line in record["log"]]
    note = (
        f"Killed at step {record['killed_at_step']}; named after {record['seconds_to_name']:.0f} s, the next step "
        f"after {record['seconds_to_next_step']:.0f} s; {result['protocol']['machine'].split(',')[0]}, at a load of "
        f"{result['protocol']['load']:.1f}."
    )
    return TextTable(("the drill's log",), rows, note=note)


TABLES: Tables = {"restart": ("restart.json", shown)}
