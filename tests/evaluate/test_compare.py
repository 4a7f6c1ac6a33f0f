"""Result files side by side."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from channelvq.errors import InputError
from channelvq.evaluate.compare import compare
from channelvq.evaluate.metrics import mean_with_interval

PSNR = [20.0, 22.0, 27.0, 21.0]
RESULT: dict[str, Any] = {
    "protocol": {
        "data": "x", "data_sha256": "d1", "n": 4, "split": "test", "libraries": {"torch": "2.13", "pillow": "12"},
        "feature_network": {"name": "ours", "sha256": "f1"}, "tokenizer_sha256": "t1", "git": "g1",
    },
    "records": [{
        "data": "x", "tokens": 8, "metrics": {"psnr": 22.5, "psnr_interval": [20.5, 24.0], "kid": 0.125, "use": 0.25},
        "per_image": {"psnr": {"4": [1.0, 1.0, 1.0, 1.0], "8": PSNR}},
    }],
}  # fmt: skip
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, change: Change = lambda result: None) -> Path:
        result = deepcopy(RESULT)
        change(result)
        (tmp_path / name).write_text(json.dumps(result))
        return tmp_path / name

    return make


def test_tokenizer_and_revision_may_differ_and_images_are_paired(write: Callable[..., Path]) -> None:
    gains = [1.0, -0.5, 0.25, 2.0]

    def better(result: dict[str, Any]) -> None:
        result["protocol"] |= {"tokenizer_sha256": "t2", "git": "g2"}
        result["records"][0]["per_image"]["psnr"]["8"] = [x + gain for x, gain in zip(PSNR, gains, strict=True)]
        result["records"][0]["metrics"]["psnr"] += sum(gains) / 4

    found = compare([write("a.json"), write("b.json", better)])
    expected = mean_with_interval(torch.tensor(gains, dtype=torch.float64), seed=0)
    assert found.paired == {"b": {"psnr": expected}}  # of all 8 tokens, not of the prefix
    table = found.text_table()
    assert table.headings == ["result", "tokens", "PSNR (dB)", "KID", "use"]
    assert table.rows[0] == ["a", "8", "22.50 (20.50 to 24.00)", "0.125", "25.0%"]
    assert "| b | 8 | 23.19 (20.50 to 24.00) | 0.125 | 25.0% |" in found.markdown()
    assert f"b - a, image by image: PSNR (dB) +{expected.mean:.3f}" in found.markdown()
    data = found.to_dict()
    assert "git" not in data["protocol"]
    assert data["rows"][1]["psnr"] == 22.5 + sum(gains) / 4


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda p: p.update(split="train"), "split: test -> train"),
        (lambda p: p.update(data_sha256="d2"), "data_sha256: d1 -> d2"),
        (lambda p: p["libraries"].update(torch="2.14"), "libraries.torch: 2.13 -> 2.14"),
        (lambda p: p["feature_network"].update(sha256="f2"), "feature_network.sha256: f1 -> f2"),
        (lambda p: p.pop("n"), "n: 4 -> None"),
        (lambda p: p.update(rounding="none"), "rounding: None -> none"),
    ],
)
def test_mixed_protocols_are_refused_by_key_and_values(write: Callable[..., Path], change: Change, key: str) -> None:
    other = write("b.json", lambda result: change(result["protocol"]))
    with pytest.raises(InputError, match="measured in different ways") as refusal:
        compare([write("a.json"), other])
    assert f"b: {key}" in str(refusal.value)
    found = compare([write("a.json"), other], allow=[key.split(":")[0]])
    assert found.allowed == (f"b: {key}",)
    assert all(row[0].endswith(" *") for row in found.text_table().rows)
    assert f"allowed: b: {key}" in found.markdown()


def test_what_is_allowed_is_a_whole_key(write: Callable[..., Path]) -> None:
    other = write("b.json", lambda result: result["protocol"]["libraries"].update(torch="2.14", pillow="13"))
    assert len(compare([write("a.json"), other], allow=["libraries"]).allowed) == 2
    for allow in ("lib", "libraries.torch", "torch"):
        with pytest.raises(InputError, match=r"libraries\.pillow"):
            compare([write("a.json"), other], allow=[allow])


def test_distances_of_other_networks_do_not_stand_in_one_column(write: Callable[..., Path]) -> None:
    other = write("b.json", lambda result: result["protocol"].update(feature_network=None))
    assert "kid" not in compare([write("a.json"), other], allow=["feature_network"]).columns


def test_other_images_are_not_paired(write: Callable[..., Path]) -> None:
    other = write("b.json", lambda result: result["protocol"].update(data_sha256="d2"))
    assert compare([write("a.json"), other], allow=["data_sha256"]).paired == {}
    without = write("c.json", lambda result: result["records"][0].pop("per_image"))
    assert compare([write("a.json"), without]).paired == {}


def test_records_of_one_file_have_names_and_protocols_of_their_own(write: Callable[..., Path]) -> None:
    def two(result: dict[str, Any]) -> None:
        result["records"].append(deepcopy(result["records"][0]) | {"data": "y", "protocol": {"data": "y"}})

    with pytest.raises(InputError, match="a y: data: x -> y"):
        compare([write("a.json", two)])
    assert [row.name for row in compare([write("a.json", two)], data="y").rows] == ["a y"]
    with pytest.raises(InputError, match="no record of the data 'z'"):
        compare([write("a.json", two)], data="z")


WRONG = (
    "", "3", "[]", "{}", "[" * 100_000, "\xff", '{"protocol": {}, "records": []}',
    '{"protocol": {}, "records": [{"metrics": 3}]}', '{"protocol": 3, "records": [3]}',
    '{"protocol": {}, "records": [{"metrics": {"psnr": 1, "psnr_interval": 5}}]}',
    '{"protocol": {}, "records": [{"metrics": {"psnr": 1, "psnr_interval": [1]}}]}',
    '{"protocol": {}, "records": [{"metrics": {"psnr": 1, "psnr_interval": ["a", "b"]}}]}',
    '{"protocol": {}, "records": [{"metrics": {"ssim": 1, "ssim_interval": {"low": 0}}}]}',
    '{"protocol": {}, "records": [{"metrics": {"kid": 1%s}}]}' % ("0" * 400),
    '{"protocol": {}, "records": [{"metrics": {}, "protocol": 5}]}',
    '{"protocol": {}, "records": [{"metrics": {}, "per_image": {"psnr": 5}}]}',
    '{"protocol": {}, "records": [{"metrics": {}, "per_image": {"psnr": {"all": [1.0]}}}]}',
    '{"protocol": {}, "records": [{"metrics": {}, "per_image": {"psnr": {"4": ["a"]}}}]}',
    '{"protocol": {}, "records": [{"metrics": {}, "per_image": {"psnr": {"4": 5}}}]}',
)  # fmt: skip


@pytest.mark.parametrize("content", WRONG)
def test_files_that_are_no_results(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.json"):
        compare([tmp_path / "a.json"])
    with pytest.raises(InputError, match=r"gone\.json"):
        compare([tmp_path / "gone.json"])
