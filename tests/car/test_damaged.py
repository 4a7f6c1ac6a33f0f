"""A damaged generator folder is named, file by file."""

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest

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
