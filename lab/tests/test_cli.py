"""The command `python -m lab` as a user meets it: results, one-line errors and exit codes."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from channelvq.cli import guarded
from channelvq.evaluate.results import write_json
from lab.cli import app
from lab.listing import studies, study_module

ROOT = Path(__file__).parents[2]
Lab = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    return tmp_path


@pytest.fixture
def lab(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Runs the command in this process, in the folder `here`: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lab", *map(str, words)])
        code = 0
        try:
            guarded(app)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def assert_refused(result: tuple[int, str, str], *parts: str) -> None:
    code, _, stderr = result
    assert code == 2, stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1, stderr
    for part in parts:
        assert part in stderr


def test_help_lists_every_study_and_loads_no_torch() -> None:
    code = (
        "import sys\nfrom lab.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
    assert {path.stem.replace("_", "-") for path in (ROOT / "lab/studies").glob("[a-z]*.py")} == set(studies())
    assert all(f" {name} " in done.stdout for name in studies())


@pytest.mark.parametrize("name", sorted(studies()))
def test_a_study_file_says_all_that_is_asked_of_it(name: str) -> None:
    about, module = studies()[name], study_module(name)
    assert about.question.endswith((".", "?"))
    assert (about.hours, about.result) == (module.HOURS, module.RESULT)
    assert {file for file, _ in module.TABLES.values()} == {about.result}
    assert callable(module.STUDY.run)
    assert callable(module.STUDY.load)


@dataclass
class Rerun:
    """Stands for a study's training."""

    result: dict[str, Any]
    grows: bool = True
    path: Path | None = None
    missing: bool = False

    def run(self, path: Path, missing: bool = False) -> dict[str, Any]:
        self.path, self.missing = path, missing
        return self.result


def test_a_gpu_that_is_asked_for_has_to_be_there(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert_refused(lab("axis", "--rerun", "--device", "cuda"), "--device cuda", "no CUDA device")


@pytest.mark.parametrize("study", ["axis", "codebook", "generator"])
def test_studies_read_one_file_and_write_another(
    lab: Lab, here: Path, monkeypatch: pytest.MonkeyPatch, study: str
) -> None:
    result = json.loads((ROOT / f"results/{study}-small.json").read_text())
    assert_refused(lab(study), f"results/{study}-small.json", "--rerun")
    (here / "s.json").write_text(json.dumps(result))
    code, stdout, _ = lab(study, "--stored", "s.json", "--json", "f.json")
    assert code == 0
    assert f"{result['protocol']['n']:,}".replace(",", "") in stdout.replace(",", "")
    assert json.loads((here / "f.json").read_text()) == result
    rerun = Rerun(result | {"new": True})
    monkeypatch.setattr(study_module(study), "STUDY", rerun)
    for words in (("--rerun",), ("--missing",)):
        assert lab(study, "--stored", "s.json", *words, "--json", "f.json")[0] == 0
        assert (rerun.path, rerun.missing) == (Path("s.json"), "--missing" in words)
        assert json.loads((here / "f.json").read_text())["new"]
    rerun.grows = False
    assert_refused(lab(study, "--stored", "s.json", "--missing"), study, "--rerun")


@pytest.mark.parametrize("study", ["axis", "domains", "table1", "generator", "orderings", "geneval-sampling"])
def test_an_evaluation_is_no_result_of_a_study(lab: Lab, here: Path, study: str) -> None:
    record = {"data": "pictures", "metrics": {"psnr": 20.0, "psnr_interval": [19.0, 21.0], "ssim": 0.5, "use": 0.5}}
    write_json("a.json", {"protocol": {"n": 5}, "records": [record]})
    code, _, stderr = lab(study, "--stored", "a.json")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "a.json: a result of another kind: " in stderr
    assert "rerun" in stderr


def test_stored_values_of_another_type_are_named(lab: Lab, here: Path) -> None:
    result = json.loads((ROOT / "results/axis-small.json").read_text())
    result["records"][1]["metrics"]["psnr"] = "high"
    (here / "s.json").write_text(json.dumps(result))
    code, _, stderr = lab("axis", "--stored", "s.json")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "s.json: a result of another kind, or damaged: " in stderr


def test_a_result_that_still_grows_is_shown_as_far_as_it_is_there(lab: Lab, here: Path) -> None:
    result = json.loads((ROOT / "results/table1-small.json").read_text())
    (here / "s.json").write_text(json.dumps(result | {"records": result["records"][:3]}))
    code, stdout, stderr = lab("table1", "--stored", "s.json")
    assert (code, "VQGAN" in stdout) == (0, True)
    assert "not shown: s.json" in stderr


def test_a_figure_file_that_cannot_be_written_is_told_first(lab: Lab, here: Path) -> None:
    assert_refused(lab("axis", "--json", "file/f.json"), "cannot write", "file/f.json")
    assert (here / "file").read_text() == "in the way"


def test_tables_are_written_anew_into_the_pages_of_a_checkout(lab: Lab, here: Path) -> None:
    (here / "results").symlink_to(ROOT / "results")
    (here / "docs").mkdir()
    (here / "README.md").write_text("no table")
    (here / "docs/results.md").write_text("a\n<!-- table: axis -->\n<!-- end -->\nb\n")
    assert lab("tables")[0] == 0
    assert (here / "README.md").read_text() == "no table"
    assert "| channel, seed 0 | 4000 |" in (here / "docs/results.md").read_text()


def test_the_labs_own_tasks_are_trained_by_name(lab: Lab, here: Path) -> None:
    for words, part in (
        (("detector", "train.stepz=1"), "train.stepz: there is no such setting"),
        (("perceptual", "image_size=0"), "image_size"),
    ):
        code, _, stderr = lab("train", *words)
        assert (code, part in stderr) == (2, True), stderr
    assert_refused(lab("bundle", "detector", "none"), "none: there is no run", "`python -m lab train lab/bundle/")
