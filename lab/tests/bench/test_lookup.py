"""The lookup bench at a size that takes a moment."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from channelvq.errors import InputError
from channelvq.pretrained import PACKAGE
from lab.bench.cli import bench_app
from lab.bench.lookup import FLOOR, METHODS, Case, load_cases, run


def test_every_method_finds_the_nearest_codeword_and_the_ratios_are_over_the_floor(tmp_path: Path) -> None:
    result = run([Case(codes=300, dim=8, rows=64)], rounds=3, path=tmp_path / "lookup.json")
    assert json.loads((tmp_path / "lookup.json").read_text())["records"]
    records = {record["method"]: record for record in result["records"]}
    assert set(records) <= {FLOOR, *METHODS}
    assert {FLOOR, "channelvq", "torch.cdist + argmin"} <= set(records)
    assert records[FLOOR]["ratio"] == 1
    assert all(record["agreement"] == 1 for name, record in records.items() if name != FLOOR)


def test_peak_sees_what_a_method_takes() -> None:
    from lab.bench.lookup import peak

    case = Case(codes=8192, dim=16, rows=2048)  # one (M, N) of float32 has 64 MiB
    assert peak("torch.cdist + argmin", case) > 48
    assert peak("channelvq", case) < 48


def test_a_tokenizers_codebook_is_a_case_of_its_own() -> None:
    vectors, codebook = Case(0, 0, rows=70, tokenizer=str(PACKAGE / "bundled" / "car" / "tokenizer")).make()
    assert vectors.shape == (70, 64)
    assert codebook.shape == (4096, 64)
    with pytest.raises(InputError, match="maps of their own"):
        Case(0, 0, rows=70, tokenizer="bundled").make()


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        load_cases([0], [8], 64, None)
    result = CliRunner().invoke(bench_app, ["lookup", "--codes", "-3"])
    assert isinstance(result.exception, InputError)
