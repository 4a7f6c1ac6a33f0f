"""A damaged generator folder is named, file by file."""

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
