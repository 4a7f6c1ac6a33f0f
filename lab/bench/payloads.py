"""`python -m lab bench payloads`: how many files with code in them are read, and of how many the code is run.

The files and their readers are those of tests/test_payloads.py, which fails where one is run.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from lab.bench.timing import machine
from lab.study import Tables

WHERE = {
    "test_model_folders": "model folders: tokenizer, generator, detector, perceptual network",
    "test_run_folders": "run folders and checkpoints",
    "test_caches": "the cache",
    "test_what_users_hand_over": "token files, results, recipes, shards, pictures, .cvq files",
}
SAID = re.compile(r"(\d+) of (\d+) payloads executed")


def run(path: Path | None) -> dict[str, Any]:
    """Read them all, kind by kind."""
    records = []
    for test, where in WHERE.items():
        command = [sys.executable, "-m", "pytest", "-s", "-o", "timeout=1200", "tests/test_payloads.py", "-k", test]
        done = subprocess.run(command, capture_output=True, text=True)
        counts = [tuple(map(int, found)) for found in SAID.findall(done.stdout)]
        if not counts:
            raise InputError(f"{test} did not run:\n{done.stdout[-2000:]}")
        executed, planted = (sum(column) for column in zip(*counts, strict=True))
        records.append({"where": where, "test": test, "planted": planted, "executed": executed})
    result = {
        "protocol": machine() | {"payloads": "pickles of three protocols, two formats of torch, numpy, YAML"},
        "records": records,
    }
    if path is not None:
        write_json(path, result)
    return result


def shown(result: dict[str, Any]) -> TextTable:
    """A row a kind of place, and all together."""
    rows = [[row["where"], str(row["planted"]), str(row["executed"])] for row in result["records"]]
    rows.append(["all", *(str(sum(row[key] for row in result["records"])) for key in ("planted", "executed"))])
    return TextTable(
        ("where", "payloads read", "executed"),
        rows,
        note=f"Each a payload of every form: {result['protocol']['payloads']}.",
    )


TABLES: Tables = {"payloads": ("payloads.json", shown)}
