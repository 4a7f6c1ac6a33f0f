"""A metric of a user's own, in one file: it is measured, told in the protocol, shown and compared like ours."""

import json
import subprocess
import sys
from pathlib import Path

PLUGIN = '''
"""How far the mean colours are apart, and how much the two sets differ in spread."""

from channelvq.evaluate.metrics import METRICS, PairMetric, SetMetric


def mean_colour(images, references):
    return (images.double().mean((2, 3)) - references.double().mean((2, 3))).abs().mean(1)


METRICS.register("colour", PairMetric(
    heading="colour shift", better="lower", digits=1, measure=mean_colour, definition="of the mean colours, 0 to 255",
))
METRICS.register("spread", SetMetric(
    heading="spread", better="lower", measure=lambda x, y: float((x.std(0) - y.std(0)).abs().mean()),
    definition=lambda num_images, width: f"difference of deviations, {width} numbers",
))
'''
USE = """
import sys

import torch
import own_metric
from channelvq import CVQTokenizer
from channelvq.cli import main
from channelvq.evaluate.held_out import held_out
from channelvq.images import save_image, to_pil

for i, picture in enumerate(to_pil(held_out("scenes", 4))):
    save_image(picture, f"pictures/{i}.png")
for words in (
    "evaluate reconstruction bundled pictures --json f.json --markdown f.md",
    "compare f.json f.json --json c.json --markdown c.md",
):
    sys.argv = ["cvq", *words.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
"""


def test_a_metric_of_ones_own_needs_one_file_and_one_registration(tmp_path: Path) -> None:
    (tmp_path / "own_metric.py").write_text(PLUGIN)
    (tmp_path / "use.py").write_text(USE)
    done = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "f.json").read_text())
    record, protocol = result["records"][0], result["protocol"]
    assert protocol["pair_metrics"]["colour"] == "of the mean colours, 0 to 255"
    assert protocol["spread"] == "difference of deviations, 128 numbers"
    prefix = record["metrics"]["prefixes"][0]
    values = record["per_image"]["colour"]["1"]
    assert abs(sum(values) / 4 - prefix["colour"]) < 1e-4 * prefix["colour"]
    low, high = prefix["colour_interval"]
    assert low <= prefix["colour"] <= high
    assert prefix["spread"] > 0
    table = (tmp_path / "f.md").read_text()
    assert "| colour shift |" in table
    assert f"| {prefix['colour']:.1f} ({low:.1f} to {high:.1f}) |" in table
    assert "colour shift" in done.stdout
    compared = json.loads((tmp_path / "c.json").read_text())
    assert compared["rows"][0]["colour"] == record["metrics"]["colour"]
    assert "| colour shift |" in (tmp_path / "c.md").read_text()
    assert "image by image: colour shift +0.000" in (tmp_path / "c.md").read_text()
