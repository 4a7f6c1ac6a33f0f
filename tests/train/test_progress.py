"""metrics.jsonl survives what happens while a run is taken up again."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from channelvq.train.engine import read_metrics
from channelvq.train.progress import Progress


def test_a_full_disk_leaves_the_records_that_were_there(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    with Progress(5, 0, tmp_path, active=True) as progress:
        for step in (1, 2, 3):
            progress.log(step, {"pixel": 0.5}, batch_size=4)
    before = read_metrics(tmp_path)
    with full_disk(), pytest.raises(OSError, match="too large"):
        Progress(5, 2, tmp_path, active=True)
    assert read_metrics(tmp_path) == before
    Progress(5, 2, tmp_path, active=True)
    assert read_metrics(tmp_path) == before[:2]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
