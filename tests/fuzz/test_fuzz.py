"""Inputs of every kind that are damaged, absurd or hostile: an InputError at worst.

FUZZ_SECONDS sets how long, FUZZ_INPUTS how many of each kind instead.
"""

from pathlib import Path

import pytest
from tests.fuzz.hammer import KINDS, hammer, taken_or_refused
from tests.fuzz.kinds import INPUTS, calls

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_inputs(kind: str, place: Path) -> None:
    found = hammer(kind, INPUTS[kind], calls(place)[kind])
    assert found.inputs > 0


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_failed(path: Path, place: Path) -> None:
    taken_or_refused(calls(place)[path.parent.name], path.read_bytes())
