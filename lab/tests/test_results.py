"""Stored results of another kind are refused, with what is missing and the remedy."""

import json
from pathlib import Path

import pytest

from channelvq.errors import InputError
from lab.results import read_result

NEEDS = ("protocol.n", "records.metrics.psnr")
GOOD = {"protocol": {"n": 1}, "records": [{"metrics": {"psnr": 1.0}}] * 2}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{}", "protocol is missing"),
        ("[]", r"\[0\] is missing"),
        ("3", "protocol is missing"),
        ("not json", "expected JSON"),
        (json.dumps(GOOD)[:30], "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        (json.dumps(GOOD | {"protocol": {}}), "protocol.n is missing"),
        (json.dumps(GOOD | {"records": []}), r"records\[0\] is missing"),
        (json.dumps(GOOD | {"records": {}}), "records.metrics is missing"),
        (json.dumps(GOOD | {"records": [{"metrics": {"nats": 1}}]}), r"records\[0\].metrics.psnr is missing"),
        (json.dumps(GOOD | {"records": [*GOOD["records"], {"metrics": {"psnr": None}}]}), r"records\[2\].metrics.psnr"),  # type: ignore[misc]
        (json.dumps(GOOD | {"records": [3]}), r"records\[0\].metrics is missing"),
    ],
)
def test_a_wrong_result_file_is_named(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"r\.json: .*{what}.*; do this"):
        read_result(path, NEEDS, "do this")


def test_a_result_with_all_that_is_needed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(GOOD))
    assert read_result(path, NEEDS, "do this") == GOOD
