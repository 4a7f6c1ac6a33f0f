"""Data sets of Hugging Face `datasets`: small ones made here, where the library is installed."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from channelvq.config import from_dict
from channelvq.data.files import huggingface
from channelvq.data.files.huggingface import HuggingFaceConfig, HuggingFaceSource
from channelvq.data.options import ImageOptions, SkippedFilesWarning
from channelvq.data.source import Sample, Source
from channelvq.data.split import assign_split
from channelvq.errors import InputError
from channelvq.images import load_image, to_tensor


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return pytest.importorskip("datasets", reason="pip install 'channelvq[huggingface]'")


def picture(seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def made(library: Any, count: int = 10, broken: tuple[int, ...] = ()) -> Any:
    rows = {
        "image": [{"bytes": b"no" if i in broken else picture(i), "path": None} for i in range(count)],
        "text": [None if i == 3 else f" text {i}\n" for i in range(count)],
        "label": [i % 2 for i in range(count)],
        "number": list(range(count)),
    }
    kinds = {"image": library.Image(), "text": library.Value("string"), "label": library.ClassLabel(names=["a_b", "c"]),
             "number": library.Value("int64")}  # fmt: skip
    return library.Dataset.from_dict(rows, features=library.Features(kinds))


def samples(source: Source) -> list[Sample]:
    return [source.sample(i, torch.Generator().manual_seed(i)) for i in range(len(source))]


def test_rows_are_samples_to_the_bit(library: Any, tmp_path: Path) -> None:
    library.DatasetDict({"train": made(library), "validation": made(library, 3)}).save_to_disk(tmp_path / "set")
    found = samples(HuggingFaceSource(str(tmp_path / "set"), "train", 12, "all", columns=("image", "text")))
    assert [s.key for s in found] == [f"train/{i}" for i in range(10)]
    assert [s.text for s in found] == ["" if i == 3 else f"text {i}" for i in range(10)]
    for i, sample in enumerate(found):
        assert torch.equal(sample.image, to_tensor(load_image(picture(i)))[:, :, 2:14])
    classes = HuggingFaceSource(str(tmp_path / "set"), "train", 12, "all", columns=("image", "label"))
    assert [s.text for s in samples(classes)] == ["a b", "c"] * 5
    assert {s.text for s in samples(HuggingFaceSource(str(tmp_path / "set"), "train", 12, "all"))} == {""}


def test_splits_by_hash_or_the_data_sets_own(library: Any, tmp_path: Path) -> None:
    library.DatasetDict({"train": made(library, 40), "val": made(library, 3)}).save_to_disk(tmp_path / "set")
    options = {"name": str(tmp_path / "set"), "validation": 0.3, "test": 0.3, "caption_column": "text"}
    config = from_dict(HuggingFaceConfig, options)
    parts = {split: [s.key for s in samples(config.build(8, split))] for split in ("train", "validation", "test")}
    assert all(assign_split(key, 0.3, 0.3) == split for split, found in parts.items() for key in found)
    assert sum(map(len, parts.values())) == 40
    config = from_dict(HuggingFaceConfig, options | {"validation_split": "val", "crop": "random", "min_side": 9})
    found = samples(config.build(8, "validation"))
    assert [(s.key, s.text) for s in found] == [("val/0", "text 0"), ("val/1", "text 1"), ("val/2", "text 2")]
    whole = HuggingFaceSource(str(tmp_path / "set"), "val", 8, "all", ImageOptions(crop="random", min_side=9))
    assert all(torch.equal(a.image, b.image) for a, b in zip(found, samples(whole), strict=True))


def test_broken_rows_are_left_out_and_remembered(library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(library, 5, broken=(1, 4)).save_to_disk(tmp_path / "set")
    for _ in range(2):
        with pytest.warns(SkippedFilesWarning, match="2 of 5 images.* skipped: .*not an image") as record:
            source = HuggingFaceSource(str(tmp_path / "set"), "train", 8, "all")
        assert record[0].filename == __file__
        assert [s.key for s in samples(source)] == ["train/0", "train/2", "train/3"]
        assert [str(s.path) for s in source.skipped] == [f"{tmp_path}/set/train/1", f"{tmp_path}/set/train/4"]
        monkeypatch.setattr(
            huggingface, "load_image", lambda content: load_image(content) if content != b"no" else None
        )


def test_folders_that_load_dataset_reads(library: Any, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    made(library, 4).to_parquet(tmp_path / "set" / "train.parquet")
    source = HuggingFaceSource(str(tmp_path / "set"), "train", 12, "all", columns=("image", "text"))
    assert [s.text for s in samples(source)] == ["text 0", "text 1", "text 2", ""]


def test_what_cannot_be_loaded(library: Any, tmp_path: Path) -> None:
    library.DatasetDict({"train": made(library, 3)}).save_to_disk(tmp_path / "set")
    name = str(tmp_path / "set")
    for arguments, options, part in (
        ((str(tmp_path / "nowhere"), "train"), {}, "cannot be loaded"),
        ((name, "val"), {}, "no split 'val', it has train"),
        ((name, "train"), {"columns": ("picture", None)}, "no column 'picture', there are image, text"),
        ((name, "train"), {"columns": ("text", None)}, "column 'text' holds .*expected images"),
        ((name, "train"), {"columns": ("image", "number")}, "expected texts or class labels"),
    ):
        with pytest.raises(InputError, match=part):
            HuggingFaceSource(*arguments, 8, "all", **options)


def test_without_the_library_its_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # what Python itself takes for "not there"
    with pytest.raises(InputError, match=r"pip install 'channelvq\[huggingface\]'"):
        HuggingFaceConfig(name="x").build(8, "train")
