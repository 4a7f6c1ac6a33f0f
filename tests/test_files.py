"""Files and folders are written whole or not at all, and are as readable as any other file."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from channelvq import CAR, CVQTokenizer
from channelvq.car.export import export_car
from channelvq.evaluate.pca import PCABaseline
from channelvq.files import filled_folder, replaced_folder, write_atomically
from channelvq.nn.perceptual import PerceptualNetwork
from channelvq.pretrained import write_settings, write_weights


@pytest.fixture(autouse=True)
def _mask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def content(folder: Path) -> dict[str, str]:
    """Text by name; no file is more or less readable than one that open() makes, and no temporary one is left."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} <= {0o640}
    return {path.relative_to(folder).as_posix(): path.read_text(errors="replace") for path in files}


def write_private(path: Path, text: str) -> None:
    """As safetensors 0.8 does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)


def stop_within(written: AbstractContextManager[Path]) -> None:
    with written as new:
        write_private(new / "weights", "half")
        raise OSError("no space left on device")


def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    write_atomically(tmp_path / "deep/a", lambda stream: stream.write(b"before"))
    (tmp_path / "deep/link").symlink_to("a")

    def fail(stream) -> None:  # type: ignore[no-untyped-def]
        stream.write(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_atomically(tmp_path / "deep/a", fail)
    assert content(tmp_path) == {"deep/a": "before", "deep/link": "before"}
    write_atomically(tmp_path / "deep/link", lambda stream: stream.write(b"after"))
    assert (tmp_path / "deep/link").is_symlink()
    assert content(tmp_path) == {"deep/a": "after", "deep/link": "after"}


def test_weights_and_settings_are_whole_and_ordinary(tmp_path: Path) -> None:
    path = tmp_path / "deep/model.safetensors"
    write_weights(path, {"a": torch.arange(6.0).view(2, 3).T})
    write_settings(tmp_path / "config.json", {"a": 1})
    assert content(tmp_path).keys() == {"deep/model.safetensors", "config.json"}
    with pytest.raises(Exception, match="memory"):
        write_weights(path, dict.fromkeys("ab", torch.zeros(3)))
    assert load_file(path)["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert content(tmp_path).keys() == {"deep/model.safetensors", "config.json"}


def test_files_of_a_folder_come_together_and_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for text in ("one", "two"):
        with filled_folder(folder) as new:
            write_private(new / "weights", text)
            write_private(new / "deep/more", text)
        write_atomically(folder / "notes", lambda stream: stream.write(b"mine"))
    with pytest.raises(OSError, match="no space"):
        stop_within(filled_folder(folder))
    assert content(tmp_path) == {"folder/deep/more": "two", "folder/notes": "mine", "folder/weights": "two"}


def test_a_folder_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "deep/folder"
    with replaced_folder(folder) as new:
        write_private(new / "old", "one")
    with pytest.raises(OSError, match="no space"):
        stop_within(replaced_folder(folder))
    assert content(tmp_path) == {"deep/folder/old": "one"}
    with replaced_folder(folder) as new:
        assert content(tmp_path)["deep/folder/old"] == "one"  # until the new one is whole
        write_private(new / "new", "two")
    assert content(tmp_path) == {"deep/folder/new": "two"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


WRITERS: dict[str, Callable[[Path], object]] = {
    "tokenizer": lambda folder: CVQTokenizer.from_pretrained("bundled").save_pretrained(folder),
    "generator": lambda folder: CAR.from_pretrained("bundled").save_pretrained(folder),
    "export": lambda folder: export_car(CAR.from_pretrained("bundled"), folder),
    "network": lambda folder: PerceptualNetwork.load("bundled").save(folder),
    "pca": lambda folder: PCABaseline.load("bundled").save(folder / "pca.safetensors"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_of_a_model_is_ordinary(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "model")
    assert any(name.endswith(".safetensors") for name in content(tmp_path))


def test_an_export_leaves_no_weights_of_an_earlier_one(tmp_path: Path) -> None:
    left = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    for name in (*left, "notes.txt"):
        (tmp_path / name).write_text("{}")
    export_car(CAR.from_pretrained("bundled"), tmp_path)
    assert not content(tmp_path).keys() & set(left)
    assert content(tmp_path).keys() >= {"notes.txt", "model.safetensors", "image_tokenizer/model.safetensors"}
