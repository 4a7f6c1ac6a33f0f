"""A damaged generator folder is named, file by file."""

import json
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
import torch

from channelvq import CAR, CVQTokenizer
from channelvq.errors import InputError
from channelvq.nn.perceptual import PerceptualNetwork


def copy(name: str, folder: Path) -> Path:
    with resources.as_file(resources.files("channelvq") / "bundled" / name) as source:
        return Path(shutil.copytree(source, folder))


@pytest.mark.parametrize(
    ("file", "content"), [("config.json", b"{"), ("tokenizer.json", b"{}"), ("model.safetensors", b"short")]
)
def test_damaged_generator(tmp_path: Path, file: str, content: bytes) -> None:
    folder = copy("car", tmp_path / "car")
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"{file}: the file is damaged"):
        CAR.from_pretrained(str(folder))


@pytest.mark.parametrize(("file", "content"), [("config.json", b"{"), ("model.safetensors", b"short")])
def test_damaged_perceptual_network(tmp_path: Path, file: str, content: bytes) -> None:
    folder = copy("perceptual", tmp_path / "perceptual")
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"{file}: the file is damaged"):
        PerceptualNetwork.load(folder)


@pytest.mark.parametrize("kind", [CAR, CVQTokenizer])
@pytest.mark.parametrize("source", ["/nowhere/final", "./nowhere", "runs/nowhere/final"])
def test_a_folder_that_is_not_there_is_told_as_such(kind: type, source: str) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        kind.from_pretrained(source)


def test_another_text_tokenizer_is_refused(tmp_path: Path) -> None:
    CAR.from_pretrained(str(copy("car", tmp_path / "car"))).save_pretrained(tmp_path / "mine")
    CAR.from_pretrained(str(tmp_path / "mine"))
    file = tmp_path / "mine/tokenizer.json"
    content = json.loads(file.read_text())
    merges = content["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]  # of the same size, and with other tokens for some words
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"another text tokenizer than the one in tokenizer\.json"):
        CAR.from_pretrained(str(tmp_path / "mine"))


@pytest.mark.parametrize("kind", ["gemma3_text", "opt"])
def test_a_type_whose_own_settings_begin_as_private_ones_loads_again(
    kind: str, new_car: Callable[..., CAR], tmp_path: Path
) -> None:
    more = {"gemma3_text": {"intermediate_size": 64, "head_dim": 16, "_sliding_window_pattern": 2},
            "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}}[kind]  # fmt: skip
    car = new_car(backbone={"model_type": kind, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                            "pad_token_id": 0} | more)  # fmt: skip
    car.save_pretrained(tmp_path)
    again = CAR.from_pretrained(tmp_path)
    assert again.config == car.config
    assert torch.equal(again.generate("a green dog").ids, car.generate("a green dog").ids)
