"""The README's code and commands, as a reader would run them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tests.pages import blocks, photo

from channelvq.config import from_dict
from channelvq.data.build import DataConfig

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "README.md"
README = PAGE.read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    photo().save("photo.png")
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        photo(10 * i).save(f"pictures/{i}.png")
    (tmp_path / "results").symlink_to(ROOT / "results")
    return tmp_path


def cvq(*words: str) -> subprocess.CompletedProcess[str]:
    return run("channelvq", *words)


def run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    # From a checkout: the lab is not in the installed package.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, "-m", module, *words], capture_output=True, text=True, check=False, env=environment
    )


def test_python_block(folder: Path) -> None:
    (code,) = blocks(PAGE, "python")
    scope: dict[str, object] = {}
    exec(code, scope)
    assert scope["ids"].shape == (1, 64)  # type: ignore[attr-defined]
    assert scope["indices"].shape == (16, 32)  # type: ignore[attr-defined]
    with Image.open("coarse.png") as coarse:
        assert coarse.size == (64, 64)


@pytest.mark.timeout(600)  # thirteen commands, one after the other: 90 s on two quiet cores
def test_commands(folder: Path) -> None:
    (commands,) = blocks(PAGE, "bash")
    lines = [shlex.split(line, comments=True) for line in commands.strip().splitlines()]
    modules = [("channelvq", *words[1:]) if words[0] == "cvq" else tuple(words[2:]) for words in lines]
    assert [words[1] for words in modules] == [
        "tokenize", "detokenize", "reconstruct", "encode", "decode", "generate", "train", "evaluate", "compare",
        "doctor", "export", "plan", "table1",
    ]  # fmt: skip
    for words in modules:
        short = ["train.steps=2", "data.validation_images=4"] if words[1] == "train" else []
        done = run(*words, *short)
        assert done.returncode == 0, done.stderr
    for path in ("tokens.json", "decoded/0000-photo.png", "strips/0000-photo.png", "figures.json", "photo.cvq",
                 "again.png", "runs/smoke/final", "generated/0000.png", "out/0000-0016.png",
                 "report/report.html"):  # fmt: skip
        assert (folder / path).exists(), path


def test_user_errors_are_one_line_and_exit_code_2(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"not an image")
    for words, part in (
        (("tokenize", "missing.png"), "missing.png"),
        (("tokenize", "broken.png"), "broken.png"),
        (("train", "small/smokee"), "small/smoke"),
        (("train", "small/smoke", "train.stepz=1"), "train.stepz: there is no such setting"),
        (("detokenize", "photo.png"), "photo.png"),
        (("tokenize", "photo.png", "-t", "nowhere/at-all"), "nowhere/at-all"),
        (("experiment", "axis"), "experiment"),
        (("data", "fetch", "fluent"), "fluent-emoji"),
        (("frobnicate",), "frobnicate"),
    ):
        done = cvq(*words)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert part in done.stderr
        assert "Traceback" not in done.stderr


def test_the_sources_of_the_data_page_can_be_used() -> None:
    page = ROOT / "docs/data.md"
    found = [from_dict(DataConfig, yaml.safe_load(text)["data"]) for text in blocks(page, "yaml")]
    kinds = {source.kind for data in found for source in data.sources.values()}
    assert kinds == {"folder", "shards", "huggingface", "tokens"}


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", README):
        assert (ROOT / target).exists(), target


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, channelvq; print([m for m in ('torch', 'transformers', 'PIL', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
