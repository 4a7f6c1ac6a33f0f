import json
import math
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from channelvq.errors import InputError
from channelvq.evaluate.results import protocol, write_json
from channelvq.pretrained import tensor_sha256, weights_sha256


def test_floats_have_six_significant_digits_and_keys_are_sorted(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_json(path, {"b": 23.456789123, "a": [1234567.89, 1.23456789e-9, 3], "c": {"z": None, "y": Path("x/y")}})
    assert path.read_text() == (
        '{\n  "a": [\n    1234570.0,\n    1.23457e-09,\n    3\n  ],\n  "b": 23.4568,\n'
        '  "c": {\n    "y": "x/y",\n    "z": null\n  }\n}\n'
    )


def test_values_without_a_json_form(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"nan": math.nan, "inf": math.inf, "tensor": torch.tensor([0.1, math.nan]), "n": torch.tensor(3)})
    assert json.loads(path.read_text()) == {"nan": None, "inf": None, "tensor": [0.1, None], "n": 3}


def test_a_long_array_of_numbers_is_one_line_and_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    numbers = [1.5, -2, None, 1e-9, 1e30] * 4
    content = {"long": numbers[:17], "short": numbers[:16], "texts": ["[1,\n 2]"] * 20, "nested": [[1.0] * 20] * 20}
    write_json(path, content)
    assert json.loads(path.read_text()) == content
    lines = path.read_text().splitlines()
    shown = ", ".join([*["1.5", "-2", "null", "1e-09", "1e+30"] * 3, "1.5", "-2"])
    assert f'  "long": [{shown}],' in lines
    assert '  "short": [' in lines


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"old": 1})
    with pytest.raises(InputError, match=r"\$\.new\[1\] is a object"):
        write_json(path, {"new": [1, object()]})
    with pytest.raises(InputError):
        write_json(path, {1: "keys are strings"})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_replacement_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(InputError, match=r"cannot write .*taken"):
        write_json(path, {})
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/result\.json"):
        write_json(tmp_path / "file" / "result.json", {})


def test_a_hash_knows_values_dtype_shape_and_name() -> None:
    x = torch.arange(6)
    hashes = {tensor_sha256(t) for t in (x, x.reshape(2, 3), x.int(), x + 1)}
    assert len(hashes) == 4
    assert tensor_sha256(x.reshape(2, 3).T.contiguous().T) == tensor_sha256(x.reshape(2, 3))
    assert weights_sha256(nn.ModuleDict({"a": nn.ReLU()})) != tensor_sha256(x)


def test_weights_hash_follows_the_weights() -> None:
    layer = nn.Linear(3, 2)
    before = weights_sha256(layer)
    assert weights_sha256(layer.train(False)) == before
    with torch.no_grad():
        layer.bias[0] += 1
    assert weights_sha256(layer) != before
    assert weights_sha256(nn.Linear(2, 2).bfloat16()) != before


def test_protocol_tells_what_was_measured(tmp_path: Path) -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    words = {"data": "scenes", "split": "held-out", "resize": "none, drawn at 8 px", "crop": "none"}
    first = protocol(images, **words, tokenizer=nn.Linear(1, 1))
    assert first["n"] == 4
    assert first["image_size"] == [8, 8]
    assert first["libraries"]["torchmetrics"]
    assert len(first["tokenizer_sha256"]) == 64
    assert first["git"] is None or len(first["git"].removesuffix("-dirty")) == 40
    images[0, 0, 0, 0] = 1
    assert protocol(images, **words)["data_sha256"] != first["data_sha256"]
    write_json(tmp_path / "protocol.json", first)
    with pytest.raises(InputError, match="uint8"):
        protocol(images.float(), **words)


def test_links_stay_and_pipes_are_written_to(tmp_path: Path) -> None:
    real, link, pipe = tmp_path / "real.json", tmp_path / "link.json", tmp_path / "pipe"
    real.write_text("old")
    link.symlink_to(real)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert json.loads(real.read_text()) == {"a": 1}
    os.mkfifo(pipe)
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    write_json(pipe, {"b": 2})
    reader.join()
    assert json.loads(heard[0]) == {"b": 2}
    assert pipe.is_fifo()
