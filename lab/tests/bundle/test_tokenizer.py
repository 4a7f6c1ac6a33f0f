"""Records of the bundled models say what a result file has to say."""

from pathlib import Path

import pytest

from channelvq import CVQTokenizer
from channelvq.evaluate.pca import PCABaseline
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.bundle.tokenizer import measure, trained_by
from lab.store import run_key

KEYS = {
    "axis",
    "quantizer",
    "codes",
    "dim",
    "tokens",
    "seed",
    "steps",
    "data",
    "split",
    "metrics",
    "seconds",
    "git",
    "run",
}


@pytest.mark.timeout(600)
def test_record_of_the_bundled_tokenizer(tmp_path: Path) -> None:
    recipe = load_recipe("small/bundled", of=TokenizerRecipe)
    training = trained_by(recipe, {"training_seconds": 7.5, "git": "abc"})
    tokenizer, pca = CVQTokenizer.from_pretrained("bundled"), PCABaseline.load("bundled")
    entry = measure(tokenizer, pca, "scenes", tmp_path, training, count=4)
    assert entry.keys() >= KEYS
    found = {key: entry[key] for key in ("axis", "quantizer", "codes", "dim", "tokens", "seconds", "git", "run")}
    assert found == {"axis": "channel", "quantizer": "simvq-residual", "codes": 4096, "dim": 64, "tokens": 64,
                     "seconds": 7.5, "git": "abc", "run": run_key(recipe)}  # fmt: skip
    assert entry["protocol"]["git"] == "abc"  # not that of a checkout whose package was just rewritten
    assert entry["protocol"]["n"] == 4
    assert (tmp_path / "bundled-tokenizer-scenes.png").is_file()
