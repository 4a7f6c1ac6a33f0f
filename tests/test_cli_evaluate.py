"""`cvq evaluate`, `cvq compare`, and what the commands say on the side."""

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import channelvq.train.run
from channelvq import CVQTokenizer
from channelvq.cli import evaluate
from channelvq.data.build import DataConfig
from channelvq.data.drawn.waves import WaveConfig
from channelvq.errors import InputError
from channelvq.evaluate import held_out, plots, predictability, reconstruction
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig

Cvq = Callable[..., tuple[int, str, str]]
RECORD_KEYS = {"axis", "quantizer", "codes", "dim", "tokens", "seed", "steps", "data", "split", "metrics", "seconds",
               "git", "run"}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: two tokenizers, a and b, and five pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "pictures").mkdir()
    for seed in range(5):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{seed}.png")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        network = ConvConfig(stem=2, base_channels=16, multipliers=(1, 2), num_blocks=1)
        quantizer = PlainConfig(codebook_size=40)
        config = CVQConfig(image_size=16, latent_channels=6, network=network, quantizer=quantizer)
        CVQTokenizer(config).save_pretrained(tmp_path / name)
    return tmp_path


def test_evaluation_writes_json_markdown_and_a_plot(cvq: Cvq, here: Path) -> None:
    code, stdout, stderr = cvq("evaluate", "reconstruction", "a", "pictures", "--json", "f.json", "--markdown", "f.md",
                               "--plot", "f.png", "--target-psnr", 1)  # fmt: skip
    assert (code, "no PCA on the plot" in stderr) == (0, True)
    assert "1 dB: 1 tokens, 1 bytes" in stdout
    content = json.loads((here / "f.json").read_text())
    record, prefixes = content["records"][0], content["records"][0]["metrics"]["prefixes"]
    assert record.keys() > RECORD_KEYS
    assert [prefix["tokens"] for prefix in prefixes] == [1, 2, 4, 6]
    assert all(
        {"psnr", "ssim", "perceptual", "kid", "use", "perplexity", "bits_per_pixel"} <= p.keys() for p in prefixes
    )
    assert record["target_psnr"] == {"psnr": 1.0, "tokens": 1, "bytes": 1}
    for metric in ("psnr", "ssim", "perceptual"):
        for prefix in prefixes:
            values = record["per_image"][metric][str(prefix["tokens"])]
            assert len(values) == 5
            assert sum(values) / 5 == pytest.approx(prefix[metric], rel=1e-5)
    assert set(record["baselines"]["curves"]) == {"jpeg", "webp"}
    protocol = content["protocol"]
    assert {"data_sha256", "resize", "crop", "rounding", "n", "tokenizer_sha256", "git", "libraries"} < protocol.keys()
    assert protocol["feature_network"]["name"] == "channelvq perceptual network, bundled"
    assert "refused" in protocol["frechet"]
    assert (here / "f.png").read_bytes()[:4] == b"\x89PNG"
    assert len([line for line in (here / "f.md").read_text().splitlines() if line.startswith("| ")]) == 2 + 4


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--plot", "f.xyz"), ["'f.xyz'", "no image format for '.xyz'", "use .png"]),
        (("--plot", "f"), ["'f'", "use .png"]),
        (("--plot", "f.png", "--pca", "none.safetensors"), ["none.safetensors", "cannot be read as a PCA baseline"]),
        (("--plot", "f.png", "--pca", "a/model.safetensors"), ["expected a file of PCABaseline.save"]),
        (("--plot", "f.png", "--pca", "bundled"), ["--pca bundled", "of 64 x 64, expected 16 x 16"]),
        (("--markdown", "keep.json"), ["'keep.json'", "another place"]),
        (("--plot", "x.png", "--markdown", "x.png"), ["'x.png'", "another place"]),
    ],
)
def test_what_cannot_be_drawn_or_written_is_refused_before_the_evaluation(
    cvq: Cvq, here: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], parts: list[str]
) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("the evaluation ran")

    monkeypatch.setattr(reconstruction, "evaluate_reconstruction", run)
    before = sorted(here.iterdir())
    code, _, stderr = cvq("evaluate", "reconstruction", "a", "pictures", "--json", "keep.json", *words)
    assert (code, stderr.count("error: ")) == (2, 1)
    assert all(part in stderr for part in parts), stderr
    assert sorted(here.iterdir()) == before


def test_a_plot_needs_matplotlib_before_the_evaluation(cvq: Cvq, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, stderr = cvq(
        "evaluate", "reconstruction", "a", "none", "--plot", "f.png"
    )  # before pictures are looked for
    assert (code, "plots need matplotlib" in stderr) == (2, True), stderr


def test_figures_are_kept_when_the_plot_fails(cvq: Cvq, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InputError("a font is missing")

    monkeypatch.setattr(plots, "quality_against_bytes", fail)
    code, _, stderr = cvq("evaluate", "reconstruction", "a", "pictures", "--json", "f.json", "--markdown", "f.md",
                               "--plot", "f.png")  # fmt: skip
    assert (code, "a font is missing" in stderr) == (2, True)
    assert json.loads((here / "f.json").read_text())["records"][0]["metrics"]["prefixes"]
    assert (here / "f.md").is_file()


def test_a_comparison_does_not_take_the_place_of_what_it_compares(cvq: Cvq, here: Path) -> None:
    (here / "r.json").write_text("{}")
    code, _, stderr = cvq("compare", "r.json", "--json", "r.json")
    assert (code, "another place" in stderr) == (2, True)
    assert (here / "r.json").read_text() == "{}"


def test_json_is_the_same_for_every_batch_size(cvq: Cvq, here: Path) -> None:
    contents = []
    for size in (1, 7, 64):
        words = ("evaluate", "reconstruction", "a", "pictures", "--json", "f.json", "--batch-size", size)
        assert cvq(*words)[0] == 0
        contents.append(json.loads((here / "f.json").read_text()))
        for key in ("evaluation_seconds", "images_per_second"):
            assert contents[-1]["records"][0].pop(key) > 0
    assert contents[0] == contents[1] == contents[2]


def test_a_quality_that_no_prefix_reaches(cvq: Cvq, here: Path) -> None:
    words = ("--target-psnr", 99, "--features", "none", "--no-per-image", "--json", "f.json")
    code, stdout, _ = cvq("evaluate", "reconstruction", "a", "pictures", *words)
    assert (code, "no prefix has 99 dB: all 6 tokens have" in stdout) == (0, True)
    record = json.loads((here / "f.json").read_text())["records"][0]
    assert record["target_psnr"]["tokens"] is None
    assert "per_image" not in record
    assert not {"kid", "perceptual"} & record["metrics"].keys()


def test_two_tokenizers_are_compared_and_mixed_protocols_are_not(cvq: Cvq, here: Path) -> None:
    for name, more in (("a", ()), ("b", ()), ("c", ("--max-images", 3))):
        tokenizer = "a" if name == "c" else name
        cvq("evaluate", "reconstruction", tokenizer, "pictures", "--json", f"{name}.json", *more)
    code, stdout, _ = cvq("compare", "a.json", "b.json", "--json", "t.json", "--markdown", "t.md")
    assert (code, "b - a, image by image: PSNR" in stdout) == (0, True)
    assert [row["name"] for row in json.loads((here / "t.json").read_text())["rows"]] == ["a", "b"]
    assert "| b | 6 | " in (here / "t.md").read_text()
    code, _, stderr = cvq("compare", "a.json", "c.json")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "n: 5 -> 3" in stderr
    assert cvq("compare", "a.json", "c.json", "--allow", "n", "--allow", "data_sha256")[0] == 0
    code, _, stderr = cvq("compare", "a.json", "a/config.json")
    assert (code, "a/config.json: is no result file" in stderr) == (2, True)


def test_a_warning_is_one_plain_line(cvq: Cvq, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(config: object, **_: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("the codebook\n fails", UserWarning, stacklevel=1)

    shown = warnings.showwarning
    monkeypatch.setattr(channelvq.train.run, "train", warn)
    assert cvq("train", "small/smoke") == (0, "", "warning: the codebook fails\n")
    assert warnings.showwarning is shown


def test_nats_of_a_held_out_set_and_of_nothing_else(cvq: Cvq, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(here / "cache"))
    monkeypatch.setitem(held_out.KINDS, "scenes", DataConfig(sources={"waves": WaveConfig()}))
    monkeypatch.setattr(evaluate, "NATS_IMAGES", 256)
    monkeypatch.setattr(predictability, "predictability", partial(predictability.predictability, steps=2))
    words = ("evaluate", "reconstruction", "a")
    code, stdout, stderr = cvq(*words, "scenes", "--max-images", 8, "--nats", "--json", "f.json")
    assert code == 0, stderr
    assert "nats a token by a small model" in stdout
    found = json.loads((here / "f.json").read_text())["records"][0]["predictability"]
    assert (found["images"], found["train_images"], found["tokens"], found["steps"]) == (8, 256, 6, 2)
    code, _, stderr = cvq(*words, "pictures", "--nats")
    assert (code, "a held-out set" in " ".join(stderr.split())) == (2, True)


def test_images_of_an_earlier_call_are_named_and_kept(cvq: Cvq, here: Path) -> None:
    assert cvq("reconstruct", "pictures", "-t", "a", "-o", "out")[2] == ""
    assert cvq("reconstruct", "pictures", "-t", "a", "-o", "out")[2] == ""
    _, _, stderr = cvq("reconstruct", "pictures/0.png", "-t", "a", "-o", "out")
    assert stderr == "note: out/ also holds 4 older image(s): 0001-1.png, ...\n"
    assert len(list((here / "out").iterdir())) == 5
    cvq("tokenize", "pictures/0.png", "-t", "a")
    assert "note: out/ also holds 4" in cvq("detokenize", "tokens.json", "-o", "out")[2]


def test_token_files_without_images_and_recipes_without_settings(cvq: Cvq, here: Path) -> None:
    cvq("tokenize", "pictures", "-t", "a")
    content = json.loads((here / "tokens.json").read_text())
    (here / "tokens.json").write_text(json.dumps(content | {"images": []}))
    code, _, stderr = cvq("detokenize", "tokens.json")
    assert (code, "images is empty" in stderr) == (2, True)
    (here / "empty.yaml").write_text("# nothing\n")
    for command in ("plan", "train"):
        code, _, stderr = cvq(command, "empty.yaml")
        assert (code, "recipe 'empty.yaml' is empty: expected settings" in stderr) == (2, True)
