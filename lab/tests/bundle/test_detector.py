"""The detector that ships in the package: its card, its gate and its stored figures."""

import json
from pathlib import Path

import pytest

from channelvq.data.fetched.packages import find_package
from channelvq.evaluate.geneval.report import KINDS
from channelvq.nn.detector import Detector
from channelvq.pretrained import weights_sha256
from lab.bundle.detector import SOURCES, measure, model_card

ROOT = Path(__file__).parents[3]
RESULT = ROOT / "results/detector.json"


def test_stored_result_passes_the_gate_and_is_the_card() -> None:
    result = json.loads(RESULT.read_text())
    scores = {record["images"]: record["scores"]["overall"] for record in result["records"]}
    assert scores["real"] >= 0.95
    assert (ROOT / "src/channelvq/bundled/detector/README.md").read_text() == model_card(result)
    assert weights_sha256(Detector.load("bundled")) == result["protocol"]["detector_sha256"]


def test_measuring_again_gives_figures_like_the_stored_ones() -> None:
    if missing := [name for name in SOURCES if find_package(name) is None]:
        pytest.skip(f"not fetched: {missing}")
    again = measure(Detector.load("bundled"), samples=1)["records"][0]["scores"]
    stored = json.loads(RESULT.read_text())["records"][0]["scores"]
    assert again["overall"] == pytest.approx(stored["overall"], abs=0.03)


def test_the_generators_result_is_of_the_bundled_detector_and_in_order() -> None:
    result = json.loads((ROOT / "results/geneval.json").read_text())
    assert result["protocol"]["detector_sha256"] == weights_sha256(Detector.load("bundled"))
    overall = [result[kind]["overall"] for kind in ("shuffled", "generator", "reconstruction", "real")]
    assert overall == sorted(overall)
    assert overall[-1] >= 0.95
    tasks = {"overall", "single_object", "two_object", "counting", "colors", "position", "color_attr"}
    assert all(set(result[kind]) == tasks for kind in KINDS)
    for kind in KINDS:
        assert result[kind]["overall"] == pytest.approx(sum(result[kind][t] for t in tasks - {"overall"}) / 6, abs=1e-5)
