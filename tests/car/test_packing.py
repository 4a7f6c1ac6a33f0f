"""Packed rows: every sample once, within bounds, and each the same as it is alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelvq.car.backbone import build_backbone
from channelvq.car.model import CAR
from channelvq.car.packing import check_packing, packed_rows, share_out
from channelvq.errors import InputError

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BACKBONES: dict[str, dict[str, Any]] = {
    "qwen3": WIDE,
    "llama": WIDE | {"model_type": "llama"},
    "mistral": WIDE | {"model_type": "mistral", "sliding_window": 5},  # less than a sample
    "gemma3": WIDE | {"model_type": "gemma3_text", "sliding_window": 5,
                      "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32},  # less than a row
}  # fmt: skip
PROMPTS = ["a green dog", "three small black cats", "", "a red car left of a blue umbrella", "a photo of two bananas"]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(40, 130))
def test_every_sample_lies_in_one_row_and_no_row_is_over_the_bound(lengths: list[int], bound: int) -> None:
    rows = share_out(lengths, bound)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert max(filled) <= bound
    # Two rows that would fit into one are one: at most as many rows as twice the least, and one more.
    assert len(rows) <= 2 * -(-sum(lengths) // bound)
    assert max(filled) - min(filled) <= max(lengths)  # so all are about as long


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.sampled_from([1, 8, 16]), st.integers(12, 50))
def test_packed_rows_hold_each_column_of_text_and_image_once(lengths: list[int], multiple: int, bound: int) -> None:
    mask = torch.arange(12) >= 12 - torch.tensor(lengths)[:, None]
    rows = packed_rows(mask, bound, multiple)
    assert rows.shape[1] == bound or rows.shape[1] % multiple == 0
    assert rows.shape[1] <= bound
    assert sorted(rows[rows >= 0].tolist()) == mask.flatten().nonzero().flatten().tolist()
    for row in rows:
        there = row[row >= 0]
        assert (row[len(there) :] == -1).all()
        begins = torch.cat([torch.tensor([True]), there.diff() != 1])
        # A sample goes on until its last column, so that the next one begins with position 0.
        assert ((there[1:][begins[1:]] - 1) % 12 != 11 - 12).all()
        assert (there[torch.cat([begins[1:], torch.tensor([True])])] % 12 == 11).all()


def test_a_sample_that_no_row_holds_is_an_error() -> None:
    with pytest.raises(InputError, match="a sample of 9 positions does not fit into a row of 8"):
        share_out([3, 9], 8)


def inputs(car: CAR) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    text = car.text.encode(PROMPTS, 24)
    return text.ids, text.mask, torch.randint(0, 32, (5, 8), generator=torch.Generator().manual_seed(0))


def rows_of(mask: torch.Tensor, bound: int = 48, multiple: int = 16) -> torch.Tensor:
    return packed_rows(torch.cat([mask, torch.ones(len(mask), 8, dtype=torch.bool)], dim=1), bound, multiple)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", BACKBONES)
def test_packed_losses_and_gradients_are_those_of_the_samples_alone(
    new_car: Callable[..., CAR], kind: str, attention: str
) -> None:
    # Plain attention has its softmax, and Gemma 3 its norms, in float32 whatever the model is in.
    car, tolerance = new_car(backbone=BACKBONES[kind]), 1e-6
    if attention == "sdpa" and kind != "gemma3":
        car, tolerance = car.double(), 1e-12
    car.backbone.set_attn_implementation(attention)
    check_packing(car.backbone, 48, 32)
    text, mask, ids = inputs(car)
    rows = rows_of(mask)
    assert rows.shape[0] < 5
    assert (rows < 0).any()
    found = []
    for packed in (None, rows):
        car.zero_grad()
        out = car(text, mask, ids, packed)
        out.loss.backward()
        found.append((out.nats.detach(), {n: p.grad for n, p in car.named_parameters() if p.grad is not None}))
    (alone, gradients), (nats, again) = found
    torch.testing.assert_close(nats, alone, atol=10 * tolerance, rtol=tolerance)
    assert gradients.keys() == again.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, atol=tolerance * float(gradient.abs().max()), rtol=tolerance)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", BACKBONES)
def test_other_neighbours_change_no_bit_of_a_sample(new_car: Callable[..., CAR], kind: str, attention: str) -> None:
    car = new_car(backbone=BACKBONES[kind])
    car.backbone.set_attn_implementation(attention)
    text, mask, ids = inputs(car)
    rows = rows_of(mask)
    for i in range(5):
        own = torch.arange(5) == i
        with torch.no_grad():
            before = car(text, mask, ids, rows).logits
            after = car(torch.where(own[:, None], text, 7), mask, torch.where(own[:, None], ids, 31 - ids), rows).logits
        assert torch.equal(before[i], after[i])
        assert not torch.equal(before[(i + 1) % 5], after[(i + 1) % 5])


@pytest.mark.parametrize(
    "settings",
    [{"model_type": "bert", "is_decoder": True}, {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}],
)
def test_a_backbone_that_cannot_keep_samples_apart_is_refused(settings: dict[str, Any]) -> None:
    model = build_backbone(WIDE | settings, 300, torch.Generator().manual_seed(0))
    with pytest.raises(
        InputError, match=rf"objective\.packing: in a {settings['model_type']} .* depends on those before"
    ):
        check_packing(model, 64, 32)
    with pytest.raises(InputError, match=r"objective\.packing 31: expected 32 or more"):
        check_packing(model, 31, 32)
