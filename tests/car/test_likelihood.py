"""What a generator thinks of given images: closed forms and the sampler as the reference."""

import math

import pytest
import torch

from channelvq.car.data import TokenSet
from channelvq.car.likelihood import encode_captions, free_running, teacher_forced, unigram_nats, with_other_captions
from channelvq.car.model import CAR
from channelvq.errors import InputError
from channelvq.evaluate.next_channel import evaluate_next_channel

CAPTIONS = ["a green dog", "three small black cats", "a photo of two bananas", "a green dog"]


def some_ids(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 32, (rows, 8), generator=torch.Generator().manual_seed(seed))


def test_teacher_forced_nats_are_the_negative_scores(car: CAR) -> None:
    ids = some_ids(4)
    nats, right = teacher_forced(car, encode_captions(car, CAPTIONS), ids)
    torch.testing.assert_close(nats, -car.score(CAPTIONS, ids), atol=1e-4, rtol=1e-4)
    assert set(right.unique().tolist()) <= {0.0, 1.0}


def test_greedy_images_are_what_the_model_holds_likeliest_told_or_not(car64: CAR) -> None:
    own = car64.generate(CAPTIONS, temperature=0.0, guidance_scale=1.0).ids
    _, right = teacher_forced(car64, encode_captions(car64, CAPTIONS), own)
    assert right.min() == 1
    for given in (0, 3):
        assert free_running(car64, CAPTIONS, own, given).shape == (4, 8 - given)
        assert free_running(car64, CAPTIONS, own, given).min() == 1


def test_a_free_run_is_right_at_its_first_channel_where_teacher_forcing_is(car64: CAR) -> None:
    ids = some_ids(4, seed=1)
    _, right = teacher_forced(car64, encode_captions(car64, CAPTIONS), ids)
    for given in range(8):
        assert torch.equal(free_running(car64, CAPTIONS, ids, given)[:, 0], right[:, given])
    with pytest.raises(InputError, match="given=8: expected 0 to 7 of the 8 tokens"):
        free_running(car64, CAPTIONS, ids, 8)


def test_other_captions_are_the_same_ones_and_none_keeps_its_place() -> None:
    text = torch.arange(100)[:, None].expand(100, 3)
    other = with_other_captions(text)
    assert sorted(other[:, 0].tolist()) == list(range(100))
    assert (other[:, 0] != text[:, 0]).all()
    assert torch.equal(text[:, 0], torch.arange(100))  # the argument is left alone


def test_counts_alone_reach_the_entropy_of_independent_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.25, 0.25])
    seen, true = (torch.multinomial(p, 40_000, True, generator=generator).view(-1, 2) for _ in range(2))
    nats = unigram_nats(true, seen, codebook_size=3)
    assert float(nats.mean()) == pytest.approx(1.5 * math.log(2), abs=0.01)
    # Closed form with smoothing: a code that was never seen among m is 1 / (m + N).
    assert float(unigram_nats(torch.tensor([[2]]), torch.tensor([[0], [0]]), 3)) == pytest.approx(math.log(5))


def test_the_report_has_a_number_for_every_channel(car: CAR) -> None:
    ids = some_ids(4).to(torch.int32)
    report = evaluate_next_channel(car, TokenSet(ids, tuple(CAPTIONS), tuple(CAPTIONS)), some_ids(50, seed=2))
    found = report.to_dict()
    by_channel = found["by_channel"]
    assert {key: len(by_channel[key]) for key in ("nats", "nats_shuffled", "nats_unigram", "top1")} == dict.fromkeys(
        ("nats", "nats_shuffled", "nats_unigram", "top1"), 8
    )
    assert by_channel["free_running"].keys() == {"0"}  # the model has 8 channels: 16 cannot be given
    assert found["nats"] == pytest.approx(sum(by_channel["nats"]) / 8, rel=1e-5)
    low, high = found["nats_interval"]
    assert low < found["nats"] < high
