"""The notebooks and scripts of examples/ run, at small sizes."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.clothes import write_fashion
from tests.pages import photo

from channelvq.data.fetched import fashion

EXAMPLES = Path(__file__).parents[1] / "examples"
# What the cell of settings is given instead of its own numbers.
SMALL: dict[str, dict[str, object]] = {
    "quick_look": {"EVERY": 32},
    "drop_in_quantizer": {"STEPS": 3},
    "from_scratch": {"STEPS": 2, "CAR_STEPS": 2, "IMAGES": 64, "CODES": 32, "START_IMAGES": 512},
    "own_images": {"STEPS": 2, "SIZE": 32, "CODES": 64, "STAND_INS": 60},
}


def cells(name: str) -> list[str]:
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(SMALL)
    told = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in told for path in (*EXAMPLES.glob("*.ipynb"), *EXAMPLES.glob("*.py")))


@pytest.mark.parametrize("name", SMALL)
def test_notebooks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (400, 28, 28), dtype=np.uint8)
    write_fashion(tmp_path, train=noise, t10k=noise[:100])
    monkeypatch.setattr(fashion, "VALIDATION", 100)
    monkeypatch.setattr(fashion, "fetch", lambda name, cache=None: tmp_path)  # the pictures are 30 MB to download
    scope: dict[str, object] = {"__name__": "__main__"}
    shows: list[object] = []
    for number, cell in enumerate(cells(name)):
        tree = ast.parse(cell)
        shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{name}, cell {number}", "exec"), scope)
        if shown is not None:  # what a notebook would show under the cell
            shows.append(eval(compile(ast.Expression(shown.value), f"{name}, cell {number}", "eval"), scope))
        if number == 0:
            assert set(SMALL[name]) <= scope.keys()
            scope |= SMALL[name]
    assert any(value is not None for value in shows)


@pytest.mark.parametrize(
    ("script", "words", "made"),
    [
        ("tokenize_folder.py", ["pictures", "ids.npz"], "ids.npz"),
        ("watch_it_draw.py", ["a photo of two bananas", "drawing.gif", "--every", "32"], "drawing.gif"),
        ("smallest_files.py", ["pictures/0.png", "--bytes", "40"], "0-40.png"),
    ],
)
def test_scripts(script: str, words: list[str], made: str, tmp_path: Path) -> None:
    pytest.importorskip("constriction")
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        photo(10 * i).save(tmp_path / f"pictures/{i}.png")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / made).is_file()
    if made == "ids.npz":
        assert np.load(tmp_path / made)["ids"].shape == (2, 64)
