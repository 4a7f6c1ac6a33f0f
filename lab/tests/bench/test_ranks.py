"""The stored comparison of one, two and four processes keeps to its tolerance."""

import json
from pathlib import Path

import torch

from lab.bench.ranks import RANKS, apart

RESULT = json.loads((Path(__file__).parents[3] / "results/scale.json").read_text())


def test_two_and_four_processes_end_where_one_does() -> None:
    assert [(row["what"], row["ranks"]) for row in RESULT["ranks"]] == [
        (what, ranks) for what in ("tokenizer", "generator") for ranks in RANKS
    ]
    for row in RESULT["ranks"]:
        assert max(row["weights"], row["average"]) < 1e-6
        assert row["loss"] < 1e-4
        assert row["moved"] > 1e-3  # a training that moves nothing would be equal too


def test_the_distance_is_that_of_the_weight_that_is_farthest() -> None:
    some = {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(1)}
    assert apart(some, {"a": torch.tensor([1.5, 2.0]), "n": torch.tensor(9)}) == 0.5
