"""Captions of folders of classes, and splits that have a folder of their own."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from channelvq.data.files.folder import FolderConfig, FolderSource
from channelvq.data.files.labels import read_labels
from channelvq.data.source import Source
from channelvq.errors import InputError


@pytest.fixture
def classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    for name in ("train/n01_a/x.png", "train/n01_a/deep/y.png", "train/n02/z.png", "train/w.png", "val/n02/v.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    (tmp_path / "train/n02/z.txt").write_text("not read")
    return tmp_path


def texts(source: Source) -> dict[str, str]:
    found = [source.sample(i, torch.Generator()) for i in range(len(source))]
    return {sample.key: sample.text for sample in found}


def test_the_first_folder_says_the_class(classes: Path) -> None:
    source = FolderSource(classes / "train", 8, "all", labels="folders")
    assert texts(source) == {"n01_a/deep/y.png": "n01 a", "n01_a/x.png": "n01 a", "n02/z.png": "n02", "w.png": ""}
    assert texts(FolderSource(classes / "train", 8, "all"))["n02/z.png"] == "not read"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "n01_a tench, Tinca tinca\n\n n02\tgoldfish\n"),
        ("names.csv", "n01_a,tench\nn02, goldfish,x"),
        ("names.json", '{"n01_a": "tench, Tinca tinca", "n02": "goldfish"}'),
    ],
)
def test_a_file_names_the_classes(classes: Path, name: str, content: str) -> None:
    (classes / name).write_text(content)
    found = texts(FolderSource(classes / "train", 8, "all", labels=str(classes / name)))
    assert list(found.values()) == ["tench", "tench", "goldfish", ""]


def test_names_that_cannot_be_used(classes: Path) -> None:
    for name, content, part in (
        ("a.txt", "n01_a tench\n", r"no name for the folder 'n02' \(of 'n02/z.png'\)"),
        ("b.txt", "n01_a\n", "expected lines of a folder and its name, got 'n01_a'"),
        ("c.json", "[1]", "expected an object of folder names"),
        ("d.json", "{", "not JSON"),
    ):
        (classes / name).write_text(content)
        with pytest.raises(InputError, match=part):
            FolderSource(classes / "train", 8, "all", labels=str(classes / name))
    with pytest.raises(InputError, match="no such file"):
        read_labels(str(classes / "gone.txt"))


def test_a_split_may_have_a_folder_of_its_own(classes: Path) -> None:
    train, val = str(classes / "train"), str(classes / "val")
    config = FolderConfig(root=train, validation_root=val, test=0.0, labels="folders")
    assert len(config.build(8, "train")) == 4
    assert texts(config.build(8, "validation")) == {"n02/v.png": "n02"}
    config = FolderConfig(root=train, validation_root=val, test_root=val)
    assert len(config.build(8, "train")) == 4
    assert texts(config.build(8, "test")) == {"n02/v.png": ""}
