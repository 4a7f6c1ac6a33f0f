"""`cvq doctor` as a command: its report, its sets, its errors."""

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.evaluate.doctor.tiny import CHANNELS, noise, tiny

from channelvq.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cvq", "doctor", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `tok`, a tokenizer; `pictures`, 20 images and a broken one; `file`."""
    monkeypatch.chdir(tmp_path)
    tiny().save_pretrained(tmp_path / "tok")
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(noise(20).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(tmp_path / f"pictures/{i:02d}.png")
    (tmp_path / "pictures/broken.png").write_bytes(b"no image")
    (tmp_path / "file").write_text("in the way")
    return tmp_path


def test_command_writes_a_report_that_needs_no_other_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "tok", "pictures", "--json", "new/d.json", "-o", "out", "--max-images", 18) == 0
    stdout, stderr = capsys.readouterr()
    assert "use" in stdout
    assert "report: out/report.html" in stdout
    assert "Traceback" not in stderr
    content = json.loads((here / "new/d.json").read_text())
    assert content["protocol"]["n"] == 18
    assert {"entropy", "knockout"} <= content["protocol"]["doctor"].keys()
    (entry,) = content["records"]
    assert len(entry["metrics"]["positions"]) == CHANNELS
    assert {"use", "use_if_uniform", "perplexity", "perplexity_ratio"} <= entry["metrics"].keys()
    assert isinstance(entry["verdict"], str)
    assert isinstance(entry["findings"], list)
    # Exactly these: nothing that a write left behind.
    names = ["atlas.png", "knockout.png", "map.png", "report.html", "tokens.png"]
    assert sorted(path.name for path in (here / "out").iterdir()) == names
    page = (here / "out/report.html").read_text()
    sources = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^"\s>)]+)', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    assert "$" not in page


def test_named_sets_are_drawn(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("channelvq.evaluate.held_out.held_out", lambda name, count, size: noise(count))
    assert run(monkeypatch, "tok", "scenes", "--json", "d.json", "--max-images", 3) == 0
    how = json.loads((here / "d.json").read_text())["protocol"]
    assert (how["n"], how["split"], how["data"].split(":")[0]) == (3, "test", "scenes")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere/at/all", "pictures"), "neither 'bundled', a folder, nor a hub repository"),
        (("pictures", "pictures"), "holds no config.json"),
        (("tok", "missing"), "no such file or folder"),
        (("tok", "tok"), "no image file"),
        (("tok", "pictures/broken.png"), "not an image"),
        (("tok", "pictures", "--json", "pictures"), "expected a file"),
        (("tok", "pictures", "-o", "file"), "expected a folder"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple, message: str
) -> None:
    assert run(monkeypatch, *words) == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1


def test_without_matplotlib_a_page_is_refused_at_once_and_the_figures_come(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(monkeypatch, "no/such/tokenizer", "pictures", "-o", "out") == 2
    assert capsys.readouterr() == ("", "error: plots need matplotlib: pip install 'channelvq[plot]'\n")
    assert not (here / "out").exists()
    assert run(monkeypatch, "tok", "pictures", "--json", "d.json") == 0
    assert "perplexity" in capsys.readouterr().out
    assert (here / "d.json").exists()
