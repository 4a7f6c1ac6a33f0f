"""Shards written: the same bytes every time, none half, and on with it after a stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import base_plus_ext

from channelvq.data.files.shard_writer import member_names, write_shards
from channelvq.data.files.shards import ShardSource
from channelvq.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path_factory.mktemp("cache")))


def fill(root: Path, count: int, side: int = 12) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        buffer = BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
        (root / f"{i:03d}.png").write_bytes(buffer.getvalue())
        (root / f"{i:03d}.txt").write_text(f"picture {i}")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    fill(tmp_path / "a", 7)
    write_shards(tmp_path / "a", tmp_path / "one", images_per_shard=3)
    fill(tmp_path / "b", 7)
    for path in (tmp_path / "b").iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    written = write_shards(tmp_path / "b", tmp_path / "two", images_per_shard=3)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert list(one) == ["images-00000.tar", "images-00001.tar", "images-00002.tar", "images.json"]
    assert all(one[name] == two[name] for name in one if name.endswith(".tar"))
    assert [(shard.images, shard.captions, shard.end) for shard in written.shards] == [(3, 3, 3), (3, 3, 6), (1, 1, 7)]
    with tarfile.open(tmp_path / "one/images-00001.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [f"{i:03d}.{kind}" for i in (3, 4, 5) for kind in ("png", "txt")]
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_unreadable_files_are_skipped_and_listed_and_shards_stay_full(tmp_path: Path) -> None:
    source = fill(tmp_path / "images", 6)
    (source / "001.png").write_bytes(b"")
    (source / "002.png").write_bytes((source / "002.png").read_bytes()[:80])
    (source / "003.txt").write_bytes(b"caf\xe9")
    (source / "005.png").write_bytes(b"no image")
    written = write_shards(source, tmp_path / "out", images_per_shard=2)
    assert written.complete
    assert [shard.images for shard in written.shards] == [2]  # 000 and 004
    reasons = {Path(path).name: reason for path, reason in written.skipped}
    assert list(reasons) == ["001.png", "002.png", "003.png", "005.png"]
    for name, part in zip(reasons, ("it is empty", "broken or incomplete", "not UTF-8", "not an image"), strict=True):
        assert part in reasons[name]
    assert json.loads((tmp_path / "out/images.json").read_text())["skipped"] == [list(each) for each in written.skipped]
    assert len(ShardSource(written.urls(tmp_path / "out"), 8, "all")) == 2


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "channelvq", "data", "shard", *map(str, words)]


def test_a_killed_call_goes_on_and_ends_equal_to_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channelvq.files.YOUNG", 0.0)
    source = fill(tmp_path / "images", 60, side=200)
    (source / "007.png").write_bytes(b"")
    write_shards(source, tmp_path / "whole", images_per_shard=2)
    with subprocess.Popen(command(source, tmp_path / "out", "--images-per-shard", 2)) as process:
        while process.poll() is None and len(list((tmp_path / "out").glob("*.tar"))) < 3:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert 3 <= len(there) < 30, "killed too late to say anything"
    for name in (".images-00003.tar.x1", ".images.json.x1"):  # killed while writing either, as it sometimes is
        (tmp_path / "out" / name).mkdir()
        (tmp_path / "out" / name / ".channelvq-writing").touch()
    (tmp_path / "out/.lock").unlink()  # which nobody holds any more
    written = write_shards(source, tmp_path / "out", images_per_shard=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert written.images == 59
    kept = [(tmp_path / "out" / name).stat().st_mtime_ns == changed for name, changed in there.items()]
    assert sum(kept) >= len(kept) - 1  # all but one that was there before its record
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert write_shards(source, tmp_path / "out", images_per_shard=2) == written
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_other_shards_in_the_way_are_refused(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "images", 4), tmp_path / "out"
    write_shards(source, out, images_per_shard=2)
    record = out / "images.json"

    def refused(part: str, **options: int) -> None:
        before = contents(out)
        with pytest.raises(InputError, match=part):
            write_shards(source, out, **({"images_per_shard": 2} | options))
        assert contents(out) == before

    refused("of other images or settings; choose another folder", images_per_shard=3)
    good = (source / "001.png").read_bytes()
    (source / "001.png").write_bytes(good + b"\0")
    refused("of other images or settings")
    (source / "001.png").unlink()
    refused("of other images or settings")
    shutil.rmtree(source)
    fill(source, 4)
    stored = json.loads(record.read_text())
    for wrong in ("{", "[]", json.dumps(stored | {"shards": 3}), json.dumps(stored | {"extra": 1})):
        record.write_text(wrong)
        refused("is not what cvq data shard wrote")
    record.unlink()
    refused("2 shards images-\\*.tar of unknown origin")
    assert write_shards(source, out, prefix="other", images_per_shard=2).images == 4
    assert write_shards(source, out, prefix="other-2", images_per_shard=2).images == 4
    assert write_shards(source, out, prefix="other", images_per_shard=2).images == 4
    (out / "other-00001.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"other-00001\.tar is missing or not as it was written"):
        write_shards(source, out, prefix="other", images_per_shard=2)


def test_manifests_keep_their_texts_and_splits(tmp_path: Path) -> None:
    fill(tmp_path / "p", 4)
    rows = [
        {"image": "p/003.png", "text": "café", "split": "test"},
        {"image": "p/000.png", "split": "train"},
        {"image": "p/001.png", "text": "", "split": "test"},
        {"image": "p/002.png", "text": "half \ud800", "split": "test"},
        {"image": "p/gone.png", "split": "test"},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    written = write_shards(tmp_path / "m.jsonl", tmp_path / "out", prefix="test", split="test")
    assert [Path(path).name for path, _ in written.skipped] == ["002.png", "gone.png"]
    source = ShardSource(written.urls(tmp_path / "out"), 8, "all")
    found = [source.sample(i, torch.Generator()) for i in range(len(source))]
    assert [(sample.key, sample.text) for sample in found] == [("p/003.png", "café"), ("p/001.png", "")]
    both = [write_shards(tmp_path / "m.jsonl", tmp_path / "out", prefix=s, split=s).images for s in ("train", "test")]
    assert both == [1, 2]


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    source = fill(tmp_path / "images", 1)
    for options, part in (
        ({"images_per_shard": 0}, "at least 1, got 0"),
        ({"prefix": "a/b"}, "shard prefix 'a/b'"),
        ({"split": "val"}, "split='val'"),
        ({"split": "test", "validation": 0.0, "test": 0.0}, "no image in split 'test'"),
    ):
        with pytest.raises(InputError, match=part):
            write_shards(source, tmp_path / "out", **options)
    with pytest.raises(InputError, match=r"nowhere': no such file or folder"):
        write_shards(tmp_path / "nowhere", tmp_path / "out")
    (source / "000.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 1 images can be read: .*it is empty"):
        write_shards(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="~\0"), max_size=12), max_size=6))
def test_member_names_are_taken_apart_and_unquoted(stems: list[str]) -> None:
    keys = [f"{stem}.png" for stem in dict.fromkeys(stems) if stem and not stem.endswith("/")]
    for key, name in zip(keys, member_names(keys), strict=True):
        assert unquote(name) == key
        if "\n" not in key:  # its regular expression stops there
            stem, suffix = base_plus_ext(name)
            assert f"{stem}.{suffix}" == name
            assert suffix == "png"
        assert not name.startswith(("/", "__"))
        assert ".." not in name.split("/")


def test_member_names_are_different() -> None:
    assert member_names(["x.png", "x.jpg", "x.png"]) == ["x.png", "x~2.jpg", "x~3.png"]
    assert member_names(["../a/b.c.png", "/r/x.png"]) == ["%2E%2E/a/b%2Ec.png", "%2Fr/x.png"]
