"""Ranks that are lost: named with their step, and the others stop. With processes: lab/tests/bench/test_restart.py."""

from pathlib import Path
from typing import Any

import pytest
from torch import distributed

from channelvq.errors import LostRankError
from channelvq.train import watch
from channelvq.train.watch import Watch


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BEAT", 0.02)
    monkeypatch.setattr(watch, "LOST", 1.0)
    monkeypatch.setattr(watch, "SURE", 0.5)


class Silent(Watch):
    """A rank that says something once and no more, as one whose machine stands still."""

    def _beat(self) -> None:
        self.store.set(self._of(self.rank), "1 4321 far-away")


def test_a_rank_that_falls_silent_ends_the_others_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/step-00000004").mkdir(parents=True)
    store, said = distributed.HashStore(), list[str]()

    def made(kind: type[Watch], rank: int, **more: Any) -> Watch:
        return kind(rank, 3, tmp_path, 6, store=store, **more)

    with made(Silent, 1), made(Watch, 0, leave=said.append) as first, made(Watch, 2, leave=said.append) as last:
        first.thread.join(20)
        last.thread.join(20)
    assert len(said) == 2
    assert said[0] == said[1]
    assert said[0].startswith("rank 1 (process 4321 on far-away) is lost at step 7; last checkpo")
    assert "step-00000004; all ranks stop, go on with train.resume=true" in said[0]


def test_an_operation_that_fails_is_said_to_be_a_lost_ranks_only_where_one_is(tmp_path: Path) -> None:
    store = distributed.HashStore()
    with (
        Watch(1, 2, tmp_path, store=store),
        pytest.raises(RuntimeError, match=r"^out of something$"),
        Watch(0, 2, tmp_path, store=store),
    ):
        raise RuntimeError("out of something")
    with (
        pytest.raises(LostRankError, match=r"^rank 1 .* at step 3; last checkpoint: none yet"),
        Silent(1, 2, tmp_path, store=store),
        Watch(0, 2, tmp_path, 2, store=store),
    ):
        raise RuntimeError("connection closed by peer")


def test_a_rank_that_has_ended_is_not_lost(tmp_path: Path) -> None:
    store, said = distributed.HashStore(), list[str]()
    with Watch(0, 2, tmp_path, store=store, leave=said.append) as first:
        with Watch(1, 2, tmp_path, store=store):
            pass
        first.thread.join(2.0)
        assert first.thread.is_alive()
    assert said == []


def test_one_process_is_not_watched(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="as it was"), Watch(0, 1, tmp_path) as alone:
        raise RuntimeError("as it was")
    assert not alone.thread.is_alive()
