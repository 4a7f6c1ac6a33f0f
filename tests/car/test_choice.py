"""One token from logits: each setting against what it means."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from channelvq.car.choice import choose, guide
from channelvq.car.settings import SamplingSettings
from channelvq.errors import InputError


def draw(logits: list[float], uniform: float, **settings: float) -> int:
    chosen = SamplingSettings(**{"guidance_scale": 1.0} | settings)  # type: ignore[arg-type]
    return int(choose(torch.tensor([logits]), torch.tensor([uniform], dtype=torch.float64), chosen)[0])


def logits(*probabilities: float) -> list[float]:
    return [math.log(p) if p else -math.inf for p in probabilities]


def test_the_token_is_where_the_uniform_number_falls_in_the_cumulative_distribution() -> None:
    p = logits(0.2, 0.5, 0.3)
    assert [draw(p, u) for u in (0.0, 0.19, 0.21, 0.69, 0.71, 0.999999)] == [0, 0, 1, 1, 2, 2]


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    p = logits(0.0, 0.5, 0.0, 0.5, 0.0)
    assert {draw(p, u) for u in (0.0, 0.5, 1 - 2**-53)} == {1, 3}
    # In float32 these add up to less than 1: the last one must not be what is missing.
    assert draw(logits(0.6, 0.9, 0.2, 0.0), 1 - 2**-53) == 2


def test_temperature() -> None:
    p = logits(0.2, 0.5, 0.3)  # at 1/2 the probabilities are squared: 4, 25, 9 of 38
    assert draw(p, 3.9 / 38, temperature=0.5) == 0
    assert draw(p, 4.1 / 38, temperature=0.5) == 1
    assert draw(p, 29.1 / 38, temperature=0.5) == 2
    assert draw(p, 0.999, temperature=0.0) == 1
    assert draw([1.0, 3.0, 3.0], 0.9, temperature=0.0) == 1


@pytest.mark.parametrize("temperature", [1e-38, 2e-38])  # below and above the smallest normal number
def test_a_tiny_temperature_is_nearly_none(temperature: float) -> None:
    assert [draw([1.0, 3.0, 2.0], u, temperature=temperature) for u in (0.0, 0.5, 0.999)] == [1, 1, 1]
    rows, uniform = torch.tensor([[1.0, 3.0, 2.0], [1002.0, 1000.0, 1001.0]]), torch.tensor([0.9, 0.9]).double()
    assert choose(rows, uniform, SamplingSettings(temperature=temperature)).tolist() == [1, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_no_token(value: float, temperature: float) -> None:
    with pytest.raises(InputError, match="not finite: the generator's weights are damaged, or guidance_scale 3"):
        draw([0.0, value, 1.0], 0.5, temperature=temperature, guidance_scale=3.0)


def test_top_k_keeps_the_likeliest() -> None:
    p = logits(0.2, 0.5, 0.3)  # the two likeliest: 5/8 and 3/8
    assert [draw(p, u, top_k=2) for u in (0.0, 0.62, 0.63)] == [1, 1, 2]
    assert draw(p, 0.999, top_k=1) == 1
    assert draw(p, 0.999, top_k=100) == 2
    assert draw([2.0, 2.0, 2.0], 0.999, top_k=1) == draw([2.0, 2.0, 2.0], 0.999, temperature=0.0) == 0


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    p = logits(0.2, 0.5, 0.3)
    assert {draw(p, u, top_p=0.49) for u in (0.0, 0.5, 0.999)} == {1}
    assert {draw(p, u, top_p=0.6) for u in (0.0, 0.5, 0.999)} == {1, 2}
    assert {draw(p, u, top_p=0.9) for u in (0.0, 0.5, 0.999)} == {0, 1, 2}
    assert {draw(p, u, top_p=1e-9) for u in (0.0, 0.999)} == {1}
    assert draw([0.0, 0.0], 0.999, top_p=0.5) == 0  # the first alone reaches it
    # At 1 all of the k likeliest stay, also where in rounded numbers those before add up to 1.
    assert draw(logits(0.2, 0.4, 0.7, 1e-12, 1e-13), 1 - 2**-53, top_k=4) == 3


def test_draws_follow_the_distribution() -> None:
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.tensor([logits(0.1, 0.2, 0.3, 0.4)]).expand(20_000, 4)
    counts = choose(rows, uniform, SamplingSettings(1.0)).bincount(minlength=4) / 20_000
    torch.testing.assert_close(counts, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.012, rtol=0)


def test_guidance_goes_away_from_the_unconditional_prediction() -> None:
    conditional, unconditional = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    assert guide(conditional, unconditional, 3.0).tolist() == [[2.0, -1.0]]
    assert torch.equal(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature: expected 0"),
        ({"temperature": math.nan}, "temperature: expected a finite number, got nan"),
        ({"top_k": -1}, "top_k: expected a whole number"),
        ({"top_k": 2.5}, "top_k: expected a whole number"),
        ({"top_p": 0.0}, "top_p: expected a number above 0"),
        ({"top_p": 1.1}, "top_p: expected a number above 0"),
        ({"guidance_scale": math.inf}, "guidance_scale: expected a finite number"),
        ({"guidance_scale": "3"}, "guidance_scale: expected a finite number"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingSettings(**settings)  # type: ignore[arg-type]


def test_guidance_that_cannot_do_what_is_asked_warns() -> None:
    SamplingSettings(guidance_scale=3.0).warn(caption_dropout=0.1, stacklevel=1)
    SamplingSettings(guidance_scale=1.0).warn(caption_dropout=0.0, stacklevel=1)
    with pytest.warns(UserWarning, match="without caption dropout .*distribution; use guidance_scale=1, or train with"):
        SamplingSettings(guidance_scale=1.5).warn(caption_dropout=0.0, stacklevel=1)
    with pytest.warns(UserWarning, match=r"guidance_scale 0.5 weakens"):
        SamplingSettings(guidance_scale=0.5).warn(caption_dropout=0.1, stacklevel=1)
    for settings in (SamplingSettings(guidance_scale=3.0), SamplingSettings(guidance_scale=0.5)):
        with pytest.warns(UserWarning, match="guidance_scale") as told:
            settings.warn(caption_dropout=0.0, stacklevel=2)
        assert not told[0].filename.endswith("settings.py")  # who calls is told, not where it is written
    with pytest.warns(UserWarning, match="guidance_scale 0 ignores the prompt"):
        SamplingSettings(guidance_scale=0).warn(caption_dropout=0.1, stacklevel=1)


def test_settings_of_numpy_and_torch_are_numbers_of_python() -> None:
    settings = SamplingSettings(np.float32(2.5), 1, np.int64(3), np.float64(0.5), torch.tensor(4))  # type: ignore[arg-type]
    assert json.dumps(asdict(settings)) == (
        '{"guidance_scale": 2.5, "temperature": 1.0, "top_k": 3, "top_p": 0.5, "seed": 4}'
    )
