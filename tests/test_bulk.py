"""Tar shards to token shards: every picture once, whatever stops the work, and never two tokenizers in one folder."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from channelvq import bulk
from channelvq.bulk import find_shards, tokenize_shards
from channelvq.data.files import token_shards
from channelvq.data.files.shard_writer import write_shards
from channelvq.data.files.token_shards import read_manifest, read_token_folder
from channelvq.errors import InputError
from channelvq.images import load_image
from channelvq.tokenizer import CVQTokenizer


def content(folder: Path) -> dict[str, bytes]:
    """Files by name, without what a killed writer left hidden, which the next one sweeps."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def add(tar: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(tar, "a") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_every_picture_is_there_once_with_its_ids(tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    manifest = tokenize_shards(tars, tmp_path / "tokens", tiny_tokenizer)
    assert manifest.counts() == {"images": 14, "captions": 9, "skipped": 0}
    assert (manifest.num_tokens, manifest.codebook_size, manifest.pending) == (8, 32, ())
    assert [shard.name for shard in manifest.shards] == [f"images-{i:05d}" for i in range(3)]
    assert read_manifest(tmp_path / "tokens") == manifest
    _, tokens = read_token_folder(tmp_path / "tokens")
    assert tokens.keys == tuple(f"{i:02d}.png" for i in range(14))
    assert tokens.captions == tuple(f"picture {i}" if i % 3 else "" for i in range(14))
    tokenizer = CVQTokenizer.from_pretrained(tiny_tokenizer)
    pictures = [load_image(tmp_path / "pictures" / key) for key in tokens.keys]
    assert torch.equal(tokens.ids.long(), tokenizer.tokenize(pictures))
    assert len(tokens.ids.unique()) > 4  # so that equal ids mean something
    assert load_file(tmp_path / "tokens/images-00000.safetensors")["ids"].dtype == torch.uint16


def test_more_pictures_than_a_batch(tars: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch) -> None:
    tokenize_shards(tars, tmp_path / "whole", tiny_tokenizer)
    monkeypatch.setattr(bulk, "BATCH", 2)
    tokenize_shards(tars, tmp_path / "small", tiny_tokenizer)
    assert content(tmp_path / "small") == content(tmp_path / "whole")


def test_members_that_cannot_be_used_are_named_and_counted(tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    whole = (tmp_path / "pictures/03.png").read_bytes()
    members = {"zz.png": b"no image", "yy.txt": b"alone", "xx.png": whole, "xx.txt": b"\xff", "ww.png": whole[:90]}
    add(tars / "images-00001.tar", members)
    with tarfile.open(tars / "empty.tar", "w"):
        pass
    said: list[str] = []
    manifest = tokenize_shards(tars, tmp_path / "tokens", tiny_tokenizer, say=said.append)
    assert manifest.counts() == {"images": 14, "captions": 9, "skipped": 5}
    empty, _, second, _ = manifest.shards
    assert [(empty.images, reason.split(": ")[-1]) for _, reason in empty.skipped] == [
        (0, f"shard {str(tars / 'empty.tar')!r} holds no image")
    ]
    assert sorted(Path(name).stem for name, _ in second.skipped) == ["ww", "xx", "yy", "zz"]
    assert all(Path(name).name in reason for name, reason in second.skipped)
    assert said[2].startswith("images-00001: 5 image(s), 4 skipped; 3 of 4 shards, ")
    assert len(read_token_folder(tmp_path / "tokens")[1]) == 14


def test_nothing_but_broken_members_is_an_error(tiny_tokenizer: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    add(tmp_path / "a.tar", {"a.png": b"no image"})
    with pytest.raises(InputError, match=r"no image to tokenize; the first: .*a\.png"):
        tokenize_shards(tmp_path / "a.tar", tmp_path / "tokens", tiny_tokenizer)


def test_a_stopped_call_goes_on_and_does_nothing_twice(
    tars: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize_shards(tars, tmp_path / "whole", tiny_tokenizer)
    begun: list[str] = []
    work, write = bulk.tokenize_shard, token_shards.write_weights

    def counted(job, model, path):  # type: ignore[no-untyped-def]
        begun.append(path.stem)
        return work(job, model, path)

    def killed(path, *rest):  # type: ignore[no-untyped-def]
        if path.stem == "images-00001":
            raise KeyboardInterrupt  # when the lines are there and the ids are not
        write(path, *rest)

    monkeypatch.setattr(bulk, "tokenize_shard", counted)
    monkeypatch.setattr(token_shards, "write_weights", killed)
    with pytest.raises(KeyboardInterrupt):
        tokenize_shards(tars, tmp_path / "parts", tiny_tokenizer)
    half = read_manifest(tmp_path / "parts")
    assert [shard.name for shard in half.shards] == ["images-00000"]
    assert half.pending == ("images-00001", "images-00002")
    with pytest.raises(InputError, match="holds 1 of 3 token shards"):
        read_token_folder(tmp_path / "parts")
    monkeypatch.setattr(token_shards, "write_weights", write)
    tokenize_shards(tars, tmp_path / "parts", tiny_tokenizer)
    assert begun == ["images-00000", "images-00001", "images-00001", "images-00002"]
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    tokenize_shards(tars, tmp_path / "parts", tiny_tokenizer)
    assert len(begun) == 4
    (tmp_path / "parts/images-00002.jsonl").unlink()
    tokenize_shards(tars, tmp_path / "parts", tiny_tokenizer)
    assert begun[4:] == ["images-00002"]
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_command_goes_on(tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    shutil.rmtree(tars)
    write_shards(tmp_path / "pictures", tars, images_per_shard=1)
    tokenize_shards(tars, tmp_path / "whole", tiny_tokenizer)
    out = tmp_path / "killed"
    command = ["data", "tokenize", str(tars), "-o", str(out), "-t", str(tiny_tokenizer), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "channelvq", *command],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        while not (out / "manifest.json").exists() or not read_manifest(out).shards:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(0.5)  # the two others end with it
    before = content(out)
    done = {shard.name for shard in read_manifest(out).shards}
    assert done
    tokenize_shards(tars, out, tiny_tokenizer)
    after = content(out)
    assert after == content(tmp_path / "whole")
    assert all(after[f"{name}.safetensors"] == before[f"{name}.safetensors"] for name in done)


def test_processes_give_what_one_gives(tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    add(tars / "images-00002.tar", {"zz.png": b"no image"})
    (tars / "images-00003.tar").write_bytes((tars / "images-00000.tar").read_bytes()[:3000])
    for name, workers in (("one", 1), ("two", 2)):
        with pytest.raises(InputError, match=r"1 of 4 shards cannot be read, the others are done.*images-00003\.tar"):
            tokenize_shards(tars, tmp_path / name, tiny_tokenizer, workers=workers)
    assert content(tmp_path / "two") == content(tmp_path / "one")
    (tars / "images-00003.tar").unlink()
    shutil.copy(tars / "images-00000.tar", tars / "images-00003.tar")  # mended
    assert tokenize_shards(tars, tmp_path / "two", tiny_tokenizer).counts() == {
        "images": 19,
        "captions": 12,
        "skipped": 1,
    }


def test_a_tar_that_goes_away_is_not_a_tar_of_broken_pictures(
    tars: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BATCH", 2)
    tar, away = tars / "images-00001.tar", tmp_path / "away.tar"
    read, calls = bulk.decode, list[str]()

    def decode(shard: Any, sample: Any, caption_field: str) -> Any:
        if shard.path == tar and not calls:
            calls.append(sample.key)
            tar.rename(away)
        return read(shard, sample, caption_field)

    monkeypatch.setattr(bulk, "decode", decode)
    with pytest.raises(InputError, match="1 of 3 shards cannot be read, the others are done"):
        tokenize_shards(tars, tmp_path / "tokens", tiny_tokenizer)
    away.rename(tar)
    manifest = tokenize_shards(tars, tmp_path / "tokens", tiny_tokenizer)
    assert manifest.counts() == {"images": 14, "captions": 9, "skipped": 0}


def test_what_cannot_be_opened_stops_no_other_tar(tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(InputError, match=r"1 of 4 shards cannot be read.*folder\.tar"):
        tokenize_shards([tmp_path / "folder.tar", *sorted(tars.glob("*.tar"))], tmp_path / "tokens", tiny_tokenizer)
    assert read_manifest(tmp_path / "tokens").counts()["images"] == 14


def test_another_tokenizer_is_refused(tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenize_shards(tars, tmp_path / "tokens", tiny_tokenizer)
    other = CVQTokenizer.from_pretrained(tiny_tokenizer)
    with torch.no_grad():
        other.quantizer.quantizer.weight.mul_(1.5)  # type: ignore[union-attr]
    other.save_pretrained(tmp_path / "other")
    before = content(tmp_path / "tokens")
    with pytest.raises(InputError, match=r"holds tokens of another tokenizer \(digest .*choose another folder"):
        tokenize_shards(tars, tmp_path / "tokens", tmp_path / "other")
    with pytest.raises(InputError, match="begun with --caption-field caption, now it is text"):
        tokenize_shards(tars, tmp_path / "tokens", tiny_tokenizer, caption_field="text")
    assert content(tmp_path / "tokens") == before


def test_another_tar_of_the_name_is_refused(tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenize_shards(tars, tmp_path / "tokens", tiny_tokenizer)
    add(tars / "images-00001.tar", {"zz.png": b"no image"})
    with pytest.raises(InputError, match=r"images-00001\.safetensors was made from another shard .* remove it"):
        tokenize_shards(tars, tmp_path / "tokens", tiny_tokenizer)
    (tmp_path / "tokens/images-00001.safetensors").unlink()
    assert tokenize_shards(tars, tmp_path / "tokens", tiny_tokenizer).counts()["skipped"] == 1


def test_more_tars_join_those_that_are_there(tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    first, *rest = find_shards(tars)
    assert tokenize_shards([first], tmp_path / "tokens", tiny_tokenizer).counts()["images"] == 5
    assert tokenize_shards(rest, tmp_path / "tokens", tiny_tokenizer).counts()["images"] == 14
    tokenize_shards(tars, tmp_path / "whole", tiny_tokenizer)
    assert content(tmp_path / "tokens") == content(tmp_path / "whole")


def test_requests_that_make_no_sense_are_refused(tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    (tmp_path / "none").mkdir()
    shutil.copytree(tars, tmp_path / "copy")
    for shards, message in (
        (tmp_path / "none", r"no \.tar file in it"),
        (tmp_path / "gone.tar", "1 of 1 files are missing"),
        ([tars / "images-00000.tar", tmp_path / "copy/images-00000.tar"], "have one name"),
    ):
        with pytest.raises(InputError, match=message):
            tokenize_shards(shards, out, tiny_tokenizer)
    with pytest.raises(InputError, match="workers: expected at least 1, got 0"):
        tokenize_shards(tars, out, tiny_tokenizer, workers=0)
    out.mkdir()
    (out / "manifest.json").write_text(json.dumps({"name": "an app"}))
    with pytest.raises(
        InputError, match=r"manifest\.json is not what `cvq data tokenize` wrote \(tokenizer: Field required\)"
    ):
        tokenize_shards(tars, out, tiny_tokenizer)
