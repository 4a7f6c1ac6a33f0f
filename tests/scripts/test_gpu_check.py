"""scripts/gpu_check.sh on the CPU at sizes of no meaning: every part but the compiled ones gives figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.sh"


@pytest.mark.skipif(sys.platform != "linux", reason="a forkserver, and bash")
def test_it_runs_to_its_end_on_the_cpu(tmp_path: Path) -> None:
    environment = os.environ | {"LAB": f"{sys.executable} -m lab", "OUT": str(tmp_path / "gpu.json"), "DEVICE": "cpu",
                                "TINY": "1", "LIMIT": "2000", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=230)
    assert done.returncode == 0, done.stderr[-3000:]
    records = {r["part"]: r for r in json.loads((tmp_path / "gpu.json").read_text())["records"]}
    on_gpus = {name for name in records if name.endswith("compiled")}
    assert {name for name, record in records.items() if record["error"]} == on_gpus
    ours = next(f for f in records["lookup"]["figures"] if f["case"].endswith("channelvq"))
    assert ours["equal_to_float64"] == 1
    assert [f["mfu"] for name in ("tokenizer step", "generator step") for f in records[name]["figures"]] == [None, None]
    exact = {f["case"]: f["equal"] for f in records["equal ids"]["figures"] if "in training" not in f["case"]}
    assert set(exact.values()) == {1.0}
    assert {f["equal_to_plain"] for f in records["sampling"]["figures"]} == {None, 1.0}
