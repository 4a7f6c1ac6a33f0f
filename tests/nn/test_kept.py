"""Values that are kept until the weights change."""

import copy

import torch

from channelvq.nn.kept import Kept


def test_a_value_is_computed_again_after_the_weights_change_only() -> None:
    weight, kept = torch.ones(3), Kept[float]()

    def total() -> float:
        return kept.get([weight], lambda: float(weight.sum()))

    assert total() == 3
    weight.data.add_(1)  # not counted by torch
    assert total() == 3
    weight.add_(1)
    assert total() == 9
    weight = torch.zeros(3)
    assert total() == 0


def test_a_copy_keeps_nothing() -> None:
    kept = Kept[str]()
    assert kept.get([], lambda: "first") == "first"
    assert copy.deepcopy(kept).get([], lambda: "second") == "second"
    assert kept.get([], lambda: "third") == "first"
