"""`cvq data check`: what is whole is counted, what is broken is named, whatever it lies in."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from channelvq.bulk import tokenize_shards
from channelvq.data.files.check import LISTED, check_source
from channelvq.data.files.folder import FolderSource
from channelvq.data.files.shard_writer import write_shards
from channelvq.errors import InputError

Cvq = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    return tmp_path


def png(seed: int, height: int = 20, width: int = 30) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_a_folder(here: Path) -> None:
    folder = here / "pictures"
    (folder / "b").mkdir(parents=True)
    for name, content in (
        ("a.png", png(0)), ("b/a.png", png(1, 40, 10)), ("c.png", png(0)), ("cut.png", png(2)[:200]),
        ("d.png", png(3, 50, 60)), ("no.png", b"no image"),
    ):  # fmt: skip
        (folder / name).write_bytes(content)
    (folder / "a.txt").write_text("said")
    (folder / "d.txt").write_bytes(b"caf\xe9")
    report = check_source(folder)
    assert (report.kind, report.images, report.captions) == ("folder", 3, 1)
    assert report.bytes == 2 * len(png(0)) + len(png(1, 40, 10))
    assert (report.width, report.height, report.side) == ((10, 30, 30), (20, 20, 40), (10, 20, 20))
    assert report.broken_count == 3
    assert [entry.path.name for entry in report.broken] == ["cut.png", "d.png", "no.png"]
    assert (report.same_file_count, report.same_file) == (1, ["c.png"])
    assert (report.same_key_count, report.sound) == (0, False)
    for name in ("cut.png", "d.png", "no.png"):
        (folder / name).unlink()
    assert check_source(folder).sound


def test_what_is_remembered_as_good_is_read_again(here: Path) -> None:
    (here / "pictures").mkdir()
    for i in range(3):
        (here / f"pictures/{i}.png").write_bytes(png(i))
    FolderSource(here / "pictures", 8, "all")
    path = here / "pictures/1.png"
    before = path.stat()
    path.write_bytes(bytes(before.st_size))  # as a disk that loses a block: size and time stay
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert check_source(here / "pictures").broken[0].path == path


def test_a_manifest_that_lists_a_picture_twice(here: Path) -> None:
    (here / "a.png").write_bytes(png(0))
    rows = [{"image": "a.png", "text": "one"}, {"image": "gone.png"}, {"image": "a.png", "text": ""}]
    (here / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = check_source(here / "list.jsonl")
    assert (report.kind, report.images, report.captions, report.broken_count) == ("manifest", 2, 1, 1)
    assert (report.same_key, report.same_file) == (["a.png"], ["a.png"])


def test_shards_with_broken_members_a_cut_one_and_names_that_come_again(here: Path) -> None:
    write_tar(here / "s-0.tar", [("a.png", png(0)), ("a.txt", b"said"), ("b.png", png(1)[:100]), ("c.txt", b"alone")])
    write_tar(here / "s-1.tar", [("x.png", png(2)), ("b.png", png(3)), ("a.png", png(0))])
    write_tar(here / "s-2.tar", [("y.png", png(4))])
    (here / "s-2.tar").write_bytes((here / "s-2.tar").read_bytes()[:700])
    for source in ("s-{0..2}.tar", "."):
        report = check_source(source)
        assert (report.kind, report.shards, report.images, report.captions) == ("shards", 3, 4, 1)
        assert [str(entry.path) for entry in report.broken] == ["s-0.tar/b.png", "s-0.tar/c"]
        assert [str(entry.path) for entry in report.broken_shards] == ["s-2.tar"]
        assert report.same_key == ["s-1.tar/b.png", "s-1.tar/a.png"]
        assert report.same_file == ["s-1.tar/a.png"]


def test_token_shards(here: Path, tars: Path, tiny_tokenizer: Path) -> None:
    tokenize_shards(tars, here / "tokens", tiny_tokenizer)
    report = check_source(here / "tokens")
    assert (report.kind, report.shards, report.images, report.captions, report.sound) == ("tokens", 3, 14, 9, True)
    path = here / "tokens/images-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    report = check_source(here / "tokens")
    assert (report.images, report.broken_shards_count) == (9, 1)
    assert "images-00001" in report.broken_shards[0].reason


def test_the_command(cvq: Cvq, here: Path) -> None:
    (here / "pictures").mkdir()
    for i in range(LISTED + 5):
        (here / f"pictures/{i:02d}.png").write_bytes(b"no image")
    (here / "pictures/\x1bz.png").write_bytes(png(0))
    code, stdout, stderr = cvq("data", "check", "pictures", "--json", "report.json")
    assert (code, stderr) == (1, "")
    assert stdout.splitlines()[0] == f"1 image(s), 0 with a caption; {len(png(0)) / 1e6:.1f} MB"
    assert f"{LISTED + 5} file(s) or member(s) cannot be used:" in stdout
    rest = "see above; a training leaves out what cannot be used"
    assert stdout.splitlines()[-3:] == ["  and 5 more", "1 without a caption", f"not sound: {rest}"]
    stored = json.loads((here / "report.json").read_text())
    assert (stored["broken_count"], len(stored["broken"]), stored["sound"]) == (LISTED + 5, LISTED, False)
    for i in range(LISTED + 5):
        (here / f"pictures/{i:02d}.png").unlink()
    code, stdout, _ = cvq("data", "check", "pictures")
    assert (code, stdout.splitlines()[-1]) == (0, "sound")
    write_shards(here / "pictures", here / "tars")
    assert cvq("data", "check", "tars/images-00000.tar")[0] == 0


def test_nothing_to_check(cvq: Cvq, here: Path) -> None:
    (here / "empty").mkdir()
    for source, part in (
        ("empty", "no image file in it"),
        ("nowhere", "missing"),
        ("a-{0,1", "expected paths such as"),
    ):
        with pytest.raises(InputError, match=part):
            check_source(source)
        code, _, stderr = cvq("data", "check", source)
        assert (code, stderr.count("\n")) == (2, 1)
