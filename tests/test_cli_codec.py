from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from channelvq.codec import compress, decompress
from channelvq.tokenizer import CVQTokenizer


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec")
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for name in ("one", "two"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / f"pictures/{name}.png")
    return folder


def test_a_picture_through_the_command_line_is_that_of_the_library(cvq, here, monkeypatch) -> None:
    monkeypatch.chdir(here)
    code, out, err = cvq("encode", "pictures/one.png", "-o", "one.cvq")
    assert (code, err) == (0, "")
    tok = CVQTokenizer.from_pretrained("bundled")
    data = Path("one.cvq").read_bytes()
    assert [data] == compress(["pictures/one.png"], tok)
    assert f"{len(data)}.0 bytes each with header" in out
    assert cvq("decode", "one.cvq", "-o", "one.png", "--tokens", 20)[0] == 0
    assert Image.open("one.png").tobytes() == decompress([data], tok, num_tokens=20)[0].tobytes()
    _, out, _ = cvq("info", "one.cvq")
    assert f"{len(data)} of {len(data)}" in out
    assert "64 tokens" in out


def test_folders_are_done_at_once_and_a_bad_member_is_skipped(cvq, here, monkeypatch) -> None:
    monkeypatch.chdir(here)
    assert cvq("encode", "pictures", "-o", "coded", "--bytes", 50)[0] == 0
    files = sorted(Path("coded").glob("*.cvq"))
    assert [file.name for file in files] == ["0000-one.cvq", "0001-two.cvq"]
    assert all(file.stat().st_size <= 50 for file in files)
    Path("coded/bad.cvq").write_bytes(b"CVQ\1")
    code, out, err = cvq("decode", "coded", "-o", "decoded")
    assert (code, "2 picture(s)" in out, "1 file(s) skipped" in err) == (0, True, True)
    assert len(list(Path("decoded").glob("*.png"))) == 2
    code, _, err = cvq("decode", "coded/bad.cvq", "-o", "bad.png")
    assert (code, "cut within its header" in err) == (2, True)


def test_mistakes_are_told_before_the_work(cvq, here, monkeypatch) -> None:
    monkeypatch.chdir(here)
    code, _, err = cvq("encode", "pictures", "-o", "both.cvq")
    assert (code, "one file for several images" in err) == (2, True)
    code, _, err = cvq("encode", "pictures/one.png", "-o", "x.cvq", "--caption", "a cat")
    assert (code, "--model car" in err) == (2, True)
    code, _, err = cvq("tables", "pictures", "-t", "nowhere")
    assert (code, "expected the folder of a saved tokenizer" in err) == (2, True)


def test_tables_of_a_tokenizer_of_ones_own(cvq, here, monkeypatch) -> None:
    monkeypatch.chdir(here)
    CVQTokenizer.from_pretrained("bundled").save_pretrained(Path("own"))
    rng = np.random.default_rng(1)
    Path("many").mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(f"many/{i}.png")
    assert cvq("tables", "many", "-t", "own")[0] == 0
    own = CVQTokenizer.from_pretrained("own")
    flat = CVQTokenizer.from_pretrained("own")
    flat.folder = None
    pictures = ["many/0.png", "many/1.png"]
    assert all(len(a) < len(b) for a, b in zip(compress(pictures, own), compress(pictures, flat), strict=True))
    assert torch.equal(own.tokenize(pictures), flat.tokenize(pictures))
