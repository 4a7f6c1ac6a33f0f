"""Parts of the GPU bench as processes: what they give, and that none of them takes others with it."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.bench import gpu
from lab.bench.gpu import NOT_MEASURED, apart, failed, run, shown

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a forkserver")


def fail() -> Any:
    raise ValueError("the kernel is wrong")


def leave() -> Any:
    os._exit(9)


def hang() -> Any:
    time.sleep(100)


def test_what_fails_ends_or_hangs_is_said() -> None:
    assert apart(os.getpid, 60)[0] not in (None, os.getpid())
    assert apart(fail, 60) == (None, "ValueError: the kernel is wrong")
    assert apart(leave, 60) == (None, "its process ended with code 9")
    assert apart(hang, 0.5) == (None, "not done after 0 seconds")


def test_a_part_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PARTS", {"bad": (1, "no_such_part", {}, False), "lookup": (1, "lookup", {}, False)})
    result = run("cpu", 989, 1000, tmp_path / "gpu.json", tiny=True)
    assert failed(result) == ["bad"]
    assert "no_such_part" in result["records"][0]["error"]
    assert {f["equal_to_float64"] for f in result["records"][1]["figures"]} == {None, 1.0}
    assert [r["part"] for r in json.loads((tmp_path / "gpu.json").read_text())["records"]] == ["bad", "lookup"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_nothing_is_measured_and_nothing_has_failed() -> None:
    result = run("cuda", 989, 480, None)
    assert failed(result) == []
    assert {row[2] for row in shown(result).rows} == {NOT_MEASURED}
