"""The bench of packed rows at a size that takes a moment; no speed is asserted."""

import json
from pathlib import Path

import pytest

from lab.bench.packing import CASES, long_captions, run, shown

TINY = (
    "train.batch_size=8", "objective.train_images=16", "objective.text_vocab_size=512", "train.precision=no",
    "model.backbone.hidden_size=32", "model.backbone.num_hidden_layers=1", "model.backbone.num_attention_heads=2",
)  # fmt: skip


def test_both_kinds_of_captions_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    run(2, tmp_path / "packing.json", TINY)
    stored = json.loads((tmp_path / "packing.json").read_text())
    assert [r["captions"] for r in stored["records"]] == list(CASES) == [row[0] for row in shown(stored).rows]
    short, long = stored["records"]
    assert 0 <= short["padding"] < long["padding"] < 0.6
    assert 0 <= long["packed_padding"] < long["padding"]
    assert all(r["ratio"] > 0 for r in stored["records"])


def test_the_long_captions_are_most_of_them_short() -> None:
    lengths = (long_captions(2000) >= 0).sum(1)
    assert lengths.min() == 7
    assert lengths.max() == 108
    assert 20 < lengths.median() < 25
