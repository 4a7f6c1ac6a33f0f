"""Points of the cost curves: what a process grows by, exponents, and heads whose gradients are those of all logits."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from channelvq import ChannelVQ
from channelvq.errors import InputError
from lab.bench.cost import PAPER_GENERATORS, exponent, generator_flops
from lab.bench.cost_parts import HEADS, Sizes, gradients_apart, head_step, isolated, quantizer_step

linux = pytest.mark.skipif(sys.platform != "linux", reason="tells the peak of a process by /proc")


def test_the_exponent_is_the_slope_of_the_last_three_points() -> None:
    points = [{"at": 1, "seconds": 7.0}, *({"at": at, "seconds": 2e-3 * at**1.5} for at in (4, 16, 64))]
    assert exponent(points, "seconds") == pytest.approx(1.5)


@linux
def test_a_point_is_a_process_that_tells_how_far_it_grew() -> None:
    megabytes = 100

    def make() -> Callable[[], object]:
        there = torch.zeros(25_000_000)  # 100 MB that are there before, and are not counted
        there += 1
        return lambda: torch.zeros(megabytes * 250_000).add_(1)

    found = isolated(make, 2)
    # What was freed before and is taken again does not let the process grow.
    assert megabytes - 10 < found["memory"] / 1e6 < megabytes + 20
    assert found["seconds"] > 0

    def fails() -> Callable[[], object]:
        raise ValueError("too large")

    with pytest.raises(InputError, match="ValueError: too large"):
        isolated(fails, 1)


@pytest.mark.parametrize("how", HEADS)
def test_no_way_of_the_head_changes_the_gradients(how: str) -> None:
    if how == "torch" and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("torch 2.13 has it")
    assert gradients_apart(how, Sizes(tokens=75, codes=50, batch=2))["apart"] < 2e-6  # parts that are not full, too
    head_step(how, Sizes(tokens=75, codes=50, batch=2))()


def test_a_step_of_the_quantizer_moves_its_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ChannelVQ] = []

    def kept(*settings: Any, **more: Any) -> ChannelVQ:
        made.append(ChannelVQ(*settings, **more))
        return made[-1]

    monkeypatch.setattr("lab.bench.cost_parts.ChannelVQ", kept)
    step = quantizer_step(Sizes(tokens=4, codes=8, dim=16, batch=2))
    for _ in range(2):
        before = made[0].codes().detach().clone()
        step()
        assert not torch.equal(made[0].codes(), before)


def test_shares_of_the_paper_add_up() -> None:
    for name in PAPER_GENERATORS:
        row = generator_flops(name)
        assert sum(row["parts"].values()) == pytest.approx(row["flops"])
        assert row["parts"]["head"] / row["flops"] < 0.02
