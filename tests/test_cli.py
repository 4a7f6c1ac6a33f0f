"""The command `cvq` as a user meets it: results, one-line errors and exit codes."""

import errno
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import channelvq.demo
import channelvq.train.run
from channelvq import CVQTokenizer
from channelvq.images import load_image
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig
from channelvq.train.signals import StopSignals

TOKENS, CODES = 12, 40
Cvq = Callable[..., tuple[int, str, str]]


def make_tokenizer(folder: Path, seed: int = 0, codes: int = CODES) -> Path:
    torch.manual_seed(seed)
    network = ConvConfig(stem=2, base_channels=16, multipliers=(1, 2), num_blocks=1)
    quantizer = PlainConfig(codebook_size=codes)
    config = CVQConfig(image_size=16, latent_channels=TOKENS, network=network, quantizer=quantizer)
    CVQTokenizer(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a.png, pictures/ with a.png in two folders below, and `file`, a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate(("a.png", "pictures/x/a.png", "pictures/y/a.png", "pictures/z.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "file").write_text("in the way")
    return tmp_path


def assert_refused(result: tuple[int, str, str], *parts: str) -> None:
    code, _, stderr = result
    assert code == 2, stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1, stderr
    for part in parts:
        assert part in stderr


# Round trips


def test_images_to_tokens_and_back(cvq: Cvq, here: Path, tokenizer: Path) -> None:
    assert cvq("tokenize", "a.png", "pictures", "-t", tokenizer, "-o", "new/t.json")[0] == 0
    rows = json.loads((here / "new/t.json").read_text())["images"]
    assert [row["image"] for row in rows] == ["a.png", "pictures/x/a.png", "pictures/y/a.png", "pictures/z.png"]
    tok = CVQTokenizer.from_pretrained(tokenizer)
    assert [row["ids"] for row in rows] == tok.tokenize([row["image"] for row in rows]).tolist()
    for words, k in ((("-k", 5), 5), ((), TOKENS)):
        assert cvq("detokenize", "new/t.json", "-o", "out", *words)[0] == 0
        for number, row in enumerate(rows):
            expected = tok.detokenize(torch.tensor(row["ids"][:k]))[0]
            written = load_image(here / f"out/{number:04d}-{Path(row['image']).stem}.png")
            assert np.array_equal(np.asarray(written), np.asarray(expected))
    assert len(list((here / "out").iterdir())) == 4


def test_rows_of_different_lengths_keep_their_order(cvq: Cvq, here: Path, tokenizer: Path) -> None:
    cvq("tokenize", "pictures", "-t", tokenizer)
    content = json.loads((here / "tokens.json").read_text())
    for row, length in zip(content["images"], (3, 7, 3), strict=True):
        row["ids"] = row["ids"][:length]
    content["images"][0]["image"] = "../../ev\0il/" + "n" * 300 + ".png"
    (here / "tokens.json").write_text(json.dumps(content))
    assert cvq("detokenize", "tokens.json", "-o", "out")[0] == 0
    tok = CVQTokenizer.from_pretrained(tokenizer)
    written = sorted((here / "out").iterdir())
    assert [path.name for path in written] == [f"0000-{'n' * 60}.png", "0001-a.png", "0002-z.png"]
    for path, row in zip(written, content["images"], strict=True):
        assert np.array_equal(np.asarray(load_image(path)), np.asarray(tok.detokenize(torch.tensor(row["ids"]))[0]))


def test_images_are_read_in_batches(cvq: Cvq, here: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, tokenize = [], CVQTokenizer.tokenize

    def counted(self: CVQTokenizer, images: Any) -> torch.Tensor:
        sizes.append(len(images))
        return tokenize(self, images)

    monkeypatch.setattr(CVQTokenizer, "tokenize", counted)
    monkeypatch.setattr("channelvq.cli.inputs.BATCH_SIZE", 3)
    (here / "pictures/broken.png").write_bytes(b"no image")
    code, stdout, stderr = cvq("tokenize", "pictures", "a.png", "-t", tokenizer)
    assert (code, stdout.startswith("4 image(s)")) == (0, True)
    assert sizes == [3, 1]
    assert "skipped pictures/broken.png" in stderr
    assert "1 file(s) skipped" in stderr


def test_reconstruct_shows_prefixes_up_to_any_length(cvq: Cvq, here: Path, tokenizer: Path) -> None:
    for k, columns in ((5, 5), (4, 4), (TOKENS, 6), (1, 2)):  # the original, then 1 2 4 5 | 1 2 4 | 1 2 4 8 12 | 1
        assert cvq("reconstruct", "pictures", "-t", tokenizer, "-o", f"k{k}", "-k", k)[0] == 0
        names = sorted(path.name for path in (here / f"k{k}").iterdir())
        assert names == ["0000-a.png", "0001-a.png", "0002-z.png"]
        assert load_image(here / f"k{k}/0000-a.png").width == columns * (2 * 16 + 2) - 2


def test_evaluate_writes_its_figures(cvq: Cvq, here: Path, tokenizer: Path) -> None:
    assert cvq("evaluate", "reconstruction", tokenizer, "pictures", "--json", "f.json", "--max-images", 2)[0] == 0
    content = json.loads((here / "f.json").read_text())
    assert content["protocol"]["n"] == 2
    prefixes = content["records"][0]["metrics"]["prefixes"]
    assert [(row["tokens"], row["bytes"]) for row in prefixes] == [(1, 1), (2, 2), (4, 3), (8, 6), (12, 9)]


# What a user can mend


def test_outputs_below_a_file(cvq: Cvq, tokenizer: Path, here: Path) -> None:
    cvq("tokenize", "a.png", "-t", tokenizer)
    for words in (
        ("tokenize", "a.png", "-t", tokenizer, "-o", "file/tokens.json"),
        ("tokenize", "a.png", "-t", tokenizer, "-o", "pictures"),
        ("detokenize", "tokens.json", "-o", "file/out"),
        ("detokenize", "tokens.json", "-o", "file"),
        ("reconstruct", "a.png", "-t", tokenizer, "-o", "file/a/b"),
        ("generate", "a cat", "--car", "none", "-o", "file/out"),
        ("evaluate", "reconstruction", tokenizer, "pictures", "--json", "file/f.json"),
        ("train", "small/smoke", "--json", "file/f.json"),
        ("demo", "--json", "file/f.json"),
    ):
        assert_refused(cvq(*words), "cannot write", words[-1])
    assert (here / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda c: c["images"][0].update(image=3), "images[0].image is 3"),
        (lambda c: c["images"][0].update(ids="12"), "images[0].ids is '12'"),
        (lambda c: c["images"][0].update(ids=[1, "2"]), "images[0].ids holds '2'"),
        (lambda c: c["images"][0].update(ids=[1, None]), "images[0].ids holds None"),
        (lambda c: c["images"][0].update(ids=[True]), "images[0].ids holds True"),
        (lambda c: c["images"][0].update(ids=[]), "has 0 ids, expected 1 to 12"),
        (lambda c: c["images"][0].update(ids=[1] * 13), "has 13 ids"),
        (lambda c: c["images"][0].update(ids=[10**30]), "outside 0..39"),
        (lambda c: c["images"].append("x"), "images[1].image is missing"),
        (lambda c: c.update(images={}), "images is {}"),
        (lambda c: c.update(tokenizer=None), "tokenizer is missing"),
        (lambda c: c.pop("tokenizer_sha256"), "tokenizer_sha256 is missing"),
        (lambda c: c.update(codebook_size="many"), "codebook_size is 'many'"),
    ],
)
def test_wrong_token_files(cvq: Cvq, here: Path, tokenizer: Path, change: Callable[[Any], object], part: str) -> None:
    cvq("tokenize", "a.png", "-t", tokenizer)
    content = json.loads((here / "tokens.json").read_text())
    change(content)
    (here / "tokens.json").write_text(json.dumps(content))
    assert_refused(cvq("detokenize", "tokens.json"), "tokens.json", part)


def test_files_that_hold_no_tokens(cvq: Cvq, here: Path) -> None:
    for name, content in (("a.json", b"[" * 100_000), ("b.json", b"\xff"), ("c.json", b"3"), ("d.json", b"")):
        (here / name).write_bytes(content)
        assert_refused(cvq("detokenize", name), name, "`cvq tokenize`")
    assert_refused(cvq("detokenize", "pictures"), "pictures")


def test_tokens_of_another_tokenizer(cvq: Cvq, here: Path, tokenizer: Path) -> None:
    cvq("tokenize", "a.png", "-t", tokenizer)
    larger = make_tokenizer(here / "larger", codes=41)
    other = make_tokenizer(here / "other", seed=1)
    assert_refused(cvq("detokenize", "tokens.json", "-t", larger), "codebook of 40 codes, the tokenizer has 41")
    assert_refused(cvq("detokenize", "tokens.json", "-t", other), "other weights", str(tokenizer))


@pytest.mark.parametrize("k", [0, -1, 99])
def test_prefixes_out_of_range(cvq: Cvq, here: Path, tokenizer: Path, k: int) -> None:
    cvq("tokenize", "a.png", "-t", tokenizer)
    assert_refused(cvq("detokenize", "tokens.json", f"-k{k}"), f"{k}", "give 1 to 12")
    assert_refused(cvq("reconstruct", "a.png", "-t", tokenizer, f"-k{k}"), f"{k}", "give 1 to 12")
    assert not (here / "decoded").exists()


@pytest.mark.parametrize("count", ["0", "-1"])
def test_max_images_has_a_least_value(cvq: Cvq, tokenizer: Path, count: str) -> None:
    code, _, stderr = cvq("evaluate", "reconstruction", tokenizer, "pictures", "--max-images", count)
    assert code == 2
    assert "--max-images" in stderr
    assert "Traceback" not in stderr


def test_nothing_to_read(cvq: Cvq, here: Path, tokenizer: Path) -> None:
    (here / "empty").mkdir()
    (here / "broken").mkdir()
    (here / "broken/a.png").write_bytes(b"no image")
    assert_refused(cvq("tokenize", "empty", "-t", tokenizer), "no image file in 'empty'")
    assert_refused(cvq("tokenize", "broken", "-t", tokenizer), "none of 1 image files", "broken/a.png")
    assert_refused(cvq("tokenize", "a.png", "gone", "-t", tokenizer), "'gone': no such file")
    assert_refused(cvq("tokenize", "broken/a.png", "-t", tokenizer), "broken/a.png")


def test_a_cache_below_a_file(cvq: Cvq, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(here / "file/cache"))
    assert_refused(cvq("data", "fetch", "emojibase-data"), "CHANNELVQ_CACHE", "file/cache")


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "runs/x: Permission denied"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "file/x"), "file/x: Not a directory"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (FloatingPointError("loss term 'pixel' is nan at step 3"), "loss term 'pixel' is nan at step 3"),
    ],
)
def test_errors_of_a_training(cvq: Cvq, monkeypatch: pytest.MonkeyPatch, error: Exception, part: str) -> None:
    def fail(config: object, **_: object) -> None:
        raise error

    monkeypatch.setattr(channelvq.train.run, "train", fail)
    assert_refused(cvq("train", "small/smoke"), part)


def test_an_interrupt_and_a_fault_of_ours(cvq: Cvq, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(config: object, **_: object) -> None:
        raise KeyboardInterrupt

    def fault(config: object, **_: object) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(channelvq.train.run, "train", interrupt)
    code, stdout, stderr = cvq("train", "small/smoke")
    assert (code, stdout, "Traceback" in stderr) == (130, "", False)
    monkeypatch.setattr(channelvq.train.run, "train", fault)
    with pytest.raises(AssertionError, match="ours"):
        cvq("train", "small/smoke")


# Figures as JSON


def test_train_writes_its_figures(cvq: Cvq, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channelvq.train.run, "train", lambda config, **_: {"psnr": 20.5})
    assert cvq("train", "small/smoke", "train.output_dir=r", "--json", "f.json")[0] == 0
    expected = {"recipe": "small/smoke", "output_dir": "r", "metrics": {"psnr": 20.5}}
    assert json.loads((here / "f.json").read_text()) == expected


@pytest.mark.parametrize(("restarts", "begun_again", "code"), [(0, 0, 143), (3, 2, 0), (3, 3, 143)])
def test_the_code_of_a_stopped_training(
    restarts: int, begun_again: int, code: int, cvq: Cvq, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of its signal, but 0 where torchrun would begin again what does not end with 0."""

    def stop(config: object, *, command: str, signals: StopSignals) -> None:
        signals.received = signal.SIGTERM

    monkeypatch.setattr(channelvq.train.run, "train", stop)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", str(restarts))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(begun_again))
    assert cvq("train", "small/smoke", "--json", "stopped.json") == (code, "", "")
    assert not (here / "stopped.json").exists()


def test_demo_writes_its_rows(cvq: Cvq, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = channelvq.demo.Row("CVQ", 4, 6.0, 17.25, 0.5, 0.1)
    monkeypatch.setattr(channelvq.demo, "run", lambda output, device: [row])
    assert cvq("demo", "--json", "f.json")[0] == 0
    expected = {"method": "CVQ", "tokens": 4, "num_bytes": 6.0, "psnr": 17.25, "ssim": 0.5, "seconds": 0.1}
    assert json.loads((here / "f.json").read_text()) == [expected]
