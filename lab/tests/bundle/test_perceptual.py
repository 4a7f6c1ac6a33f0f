"""The perceptual network that ships in the package beats pixels at recognising an emoji of another art set."""

import json
from pathlib import Path

import pytest

from channelvq.data.fetched.packages import find_package
from channelvq.nn.perceptual import PerceptualNetwork
from lab.bundle.perceptual import SOURCES, cross_style, model_card

RESULT = Path(__file__).parents[3] / "results/perceptual.json"
CARD = Path(__file__).parents[3] / "src/channelvq/bundled/perceptual/README.md"


def test_stored_result_beats_pixels_for_every_pair_and_is_the_card() -> None:
    result = json.loads(RESULT.read_text())
    network, pixels = (record["accuracy"] for record in result["records"])
    assert network["mean"] > 0.51
    assert all(network[pair] > pixels[pair] for pair in network)
    assert CARD.read_text() == model_card(result)


def test_measuring_again_gives_the_stored_figures() -> None:
    if missing := [name for name in SOURCES if find_package(name) is None]:
        pytest.skip(f"not fetched: {missing}")
    again = cross_style(PerceptualNetwork.load("bundled"), 64)
    stored = json.loads(RESULT.read_text())
    assert again["records"][0]["accuracy"]["mean"] == pytest.approx(stored["records"][0]["accuracy"]["mean"], abs=1e-3)
