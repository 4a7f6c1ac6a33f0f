"""Token files: what reading and checking one costs, by calls."""

import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from channelvq import CVQTokenizer
from channelvq.errors import InputError
from channelvq.evaluate.token_file import check_fits, read_tokens
from channelvq.pretrained import weights_sha256


@pytest.fixture(scope="module")
def tokenizer() -> CVQTokenizer:
    return CVQTokenizer.from_pretrained("bundled")


def write(path: Path, tokenizer: CVQTokenizer, rows: list[list[Any]]) -> Path:
    images = [{"image": f"{i}.png", "ids": ids} for i, ids in enumerate(rows)]
    own = {"tokenizer_sha256": weights_sha256(tokenizer), "codebook_size": tokenizer.codebook_size}
    path.write_text(json.dumps({"tokenizer": "bundled", **own, "images": images}))
    return path


def calls(path: Path, tokenizer: CVQTokenizer) -> int:
    """Of functions, Python's and those of C, while a token file is read and checked."""
    count = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        check_fits(read_tokens(path), path, tokenizer, None)
    finally:
        sys.setprofile(before)
    return count


def test_nothing_is_asked_once_an_id(tmp_path: Path, tokenizer: CVQTokenizer) -> None:
    few = write(tmp_path / "few.json", tokenizer, [[1]] * 50)
    many = write(tmp_path / "many.json", tokenizer, [[1] * 64] * 50)
    calls(few, tokenizer)  # what is asked the first time only
    assert calls(few, tokenizer) == calls(many, tokenizer)
    rows = [calls(write(tmp_path / "rows.json", tokenizer, [[1]] * n), tokenizer) for n in (100, 200)]
    assert rows[1] - rows[0] < 100 * 30  # of an image


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 4, -1], r"has the id -1, outside 0\.\.4095"), ([5000, 3], r"has the id 5000, outside"),
        ([1, True], "ids holds True, they should be whole numbers"), ([1, 2.0], r"ids holds 2\.0, they"),
        ([None], "ids holds None, they"), ([1, "2"], "ids holds '2', they"), ([], "has 0 ids, expected 1 to 64"),
    ],
)  # fmt: skip
def test_wrong_ids_are_named(tmp_path: Path, tokenizer: CVQTokenizer, ids: list[Any], message: str) -> None:
    path = write(tmp_path / "t.json", tokenizer, [[1, 2], ids])
    with pytest.raises(InputError, match=message):
        check_fits(read_tokens(path), path, tokenizer, None)
