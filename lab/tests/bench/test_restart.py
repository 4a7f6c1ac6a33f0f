"""A killed rank is named by the other one, and torchrun begins both again from the last checkpoint."""

import sys
from pathlib import Path

import pytest

from channelvq import CVQTokenizer
from lab.bench.restart import STEPS, drill


@pytest.mark.skipif(sys.platform == "win32", reason="torch.distributed.run, SIGKILL")
def test_a_killed_rank_is_named_and_all_begin_again_from_the_checkpoint(tmp_path: Path) -> None:
    found = drill(tmp_path / "run")
    (lost,) = (line for line in found["log"] if "is lost" in line)
    assert "rank 1 (process P on HOST) is lost at step " in lost
    assert "last checkpoint: run/checkpoints/step-0000000" in lost
    assert found["seconds_to_name"] < 60
    assert found["steps"] == list(range(1, STEPS + 1))  # none twice, none left out
    assert CVQTokenizer.from_pretrained(tmp_path / "run/final").num_tokens == 4
