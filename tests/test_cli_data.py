"""`cvq data shard` and `cvq data tokenize` as a user meets them."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from channelvq.data.files.shards import ShardSource
from channelvq.files import only_writer

Cvq = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: pictures/ with 5 images, two captions and two broken files; `file`, a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{i}.png")
    for i in range(2):
        (tmp_path / f"pictures/{i}.txt").write_text(f"picture {i}")
        (tmp_path / f"pictures/broken{i}.png").write_bytes(b"no image")
    (tmp_path / "file").write_text("in the way")
    return tmp_path


def test_shard_writes_counts_and_names_what_it_skips(cvq: Cvq, here: Path) -> None:
    code, stdout, stderr = cvq("data", "shard", "pictures", "out", "--images-per-shard", 2)
    assert code == 0
    urls = "out/images-{00000..00002}.tar"
    assert stdout == f"5 image(s), 2 with a caption, in 3 shard(s): {urls}\n"
    lines = stderr.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == [f"skipped pictures/broken{i}.png" for i in range(2)]
    assert lines[2:] == ["2 file(s) skipped, all listed in out/images.json"]
    assert len(json.loads((here / "out/images.json").read_text())["skipped"]) == 2
    assert len(ShardSource(urls, 8, "all")) == 5
    assert cvq("data", "shard", "pictures", "out", "--images-per-shard", 2) == (code, stdout, stderr)
    code, stdout, _ = cvq("data", "shard", "pictures", "out", "--split", "train", "--test", 0, "--validation", 0)
    assert (code, stdout) == (0, "5 image(s), 2 with a caption, in 1 shard(s): out/train-00000.tar\n")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("nowhere", "out"), "no such file or folder"),
        (("nowhere.csv", "out"), "no such file"),
        (("pictures", "file"), "it is a file, expected a folder"),
        (("pictures", "out", "--prefix", "../x"), "shard prefix '../x'"),
        (("pictures", "out", "--split", "test", "--test", "0"), "no image in split 'test'"),
        (("pictures", "out", "--split", "test", "--test", "0.6", "--validation", "0.6"), "together at most 1"),
    ],
)
def test_wrong_requests_are_one_line_and_exit_code_2(cvq: Cvq, here: Path, words: tuple[str, ...], part: str) -> None:
    code, _, stderr = cvq("data", "shard", *words)
    assert code == 2
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1, stderr
    assert part in stderr


@pytest.mark.parametrize("option", [("--images-per-shard", "0"), ("--split", "val"), ("--test", "2")])
def test_wrong_options_are_exit_code_2(cvq: Cvq, option: tuple[str, str]) -> None:
    code, _, stderr = cvq("data", "shard", "pictures", "out", *option)
    assert code == 2
    assert option[0] in stderr
    assert "Traceback" not in stderr


def test_training_on_shards_that_cannot_be_read_is_one_line(cvq: Cvq, here: Path) -> None:
    cvq("data", "shard", "pictures", "out", "--images-per-shard", 2)
    train = ("train", "small/own-shards")
    (here / "out/images-00001.tar").write_bytes((here / "out/images-00001.tar").read_bytes()[:3000])
    for urls, part in (
        ("data.sources.shards.urls=out/images-{00000..00003}.tar", "1 of 4 files are missing: out/images-00003.tar"),
        ("data.sources.shards.urls=out/images-{00000..00002}.tar", "out/images-00001.tar' is broken or cut off"),
        ("data.sources.shards.url=out/images-{00000..00002}.tar", "data.sources.shards.url: there is no such setting"),
    ):
        code, _, stderr = cvq(*train, urls)
        assert (code, "Traceback" in stderr) == (2, False)
        assert part in stderr
    # What a shell makes of braces without quotes
    code, _, stderr = cvq(*train, *(f"data.sources.shards.urls=out/images-0000{i}.tar" for i in range(3)))
    assert code == 2
    assert "one setting twice; put a value with braces in quotes" in stderr


def test_tokenize_tells_what_it_did_and_goes_on(cvq: Cvq, here: Path, tiny_tokenizer: Path) -> None:
    cvq("data", "shard", "pictures", "out", "--images-per-shard", 2)
    with tarfile.open(here / "out/images-00002.tar", "a") as tar:
        tar.add(here / "pictures/broken0.png", "\x1b.png")
    command = ("data", "tokenize", "out/images-{00000..00002}.tar", "-o", "tokens", "-t", tiny_tokenizer)
    code, stdout, stderr = cvq(*command, "--engine", "local")
    assert code == 0, stderr
    assert stdout == "5 image(s), 2 with a caption, in 3 token shard(s) of 8 tokens an image -> tokens/\n"
    lines = stderr.splitlines()
    parts = [line.split("; ")[1].split(",")[0] for line in lines[:3]]
    assert parts == ["1 of 3 shards", "2 of 3 shards", "3 of 3 shards"]
    assert lines[2].startswith("images-00002: 1 image(s), 1 skipped; ")
    assert lines[3].startswith("skipped 'out/images-00002.tar/")
    assert lines[4:] == ["1 member(s) skipped, all listed in tokens/manifest.json"]
    assert "\x1b" not in stderr
    assert json.loads((here / "tokens/manifest.json").read_text())["images"] == 5
    code, again, stderr = cvq(*command)
    assert (code, again, len(stderr.splitlines())) == (0, stdout, 2)  # nothing is done again


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("nowhere.tar", "-o", "tokens"), "1 of 1 files are missing: nowhere.tar"),
        (("pictures", "-o", "tokens"), "no .tar file in it"),
        (("out", "-o", "out"), "the command reads"),
        (("out", "-o", "pictures"), "of something else"),
        (("out", "-o", "file"), "it is a file, expected a folder"),
        (("out", "-o", "tokens", "-t", "/nowhere"), "tokenizer '/nowhere'"),
        (("out", "-o", "broken", "--overwrite"), "is not what `cvq data tokenize` wrote"),
    ],
)
def test_wrong_requests_for_tokens_are_one_line(
    cvq: Cvq, here: Path, tiny_tokenizer: Path, words: tuple[str, ...], part: str
) -> None:
    cvq("data", "shard", "pictures", "out")
    (here / "broken").mkdir()
    (here / "broken/manifest.json").write_text("{}")
    tokenizer = () if "-t" in words else ("-t", tiny_tokenizer)
    code, _, stderr = cvq("data", "tokenize", *words, *tokenizer)
    assert code == 2
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1, stderr
    assert part in stderr


def test_a_cut_tar_is_one_line_after_the_others_are_done(cvq: Cvq, here: Path, tiny_tokenizer: Path) -> None:
    cvq("data", "shard", "pictures", "out", "--images-per-shard", 2)
    (here / "out/images-00001.tar").write_bytes((here / "out/images-00001.tar").read_bytes()[:3000])
    code, _, stderr = cvq("data", "tokenize", "out", "-o", "tokens", "-t", tiny_tokenizer)
    *_, last = stderr.splitlines()
    assert (code, "Traceback" in stderr) == (2, False)
    assert last.startswith("error: 1 of 3 shards cannot be read, the others are done; ")
    assert "images-00001.tar' is broken or cut off" in last
    assert json.loads((here / "tokens/manifest.json").read_text())["pending"] == ["images-00001"]


def test_one_process_at_a_time_writes_tokens(cvq: Cvq, here: Path, tiny_tokenizer: Path) -> None:
    cvq("data", "shard", "pictures", "out")
    with only_writer(here / "tokens"):
        code, _, stderr = cvq("data", "tokenize", "out", "-o", "tokens", "-t", tiny_tokenizer)
    assert code == 2
    assert "tokens: another process is writing to it" in stderr
