"""Slots: images that join others on their way are those that they are alone."""

import random

import pytest
import torch
from tests.car.oracle import naive_ids

from channelvq.car.group import sampling_mode, text_rows
from channelvq.car.model import CAR
from channelvq.car.rows import Rows, can_have_rows
from channelvq.car.sampling import Sampler
from channelvq.car.settings import SamplingSettings
from channelvq.car.slots import Drawing, Slots, drawings
from channelvq.errors import InputError
from channelvq.nn.modes import CHUNK_ROWS

PROMPTS = ["a green dog", "a red car left of a blue umbrella", "", "three small black cats and a photo", "a"]
WIDE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def drawing(model: CAR, prompt: str, num_tokens: int | None = None, against: str = "", **settings: float) -> Drawing:
    chosen = SamplingSettings(**settings)  # type: ignore[arg-type]
    request = Sampler(model, chosen).request(prompt, num_tokens=num_tokens, negative_prompt=against)
    (one,) = drawings(request, chosen, model.num_tokens)
    return one


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("channel_embedding", [False, True])
def test_images_that_come_and_go_are_those_they_are_alone(new_car, guidance_scale, channel_embedding) -> None:  # type: ignore[no-untyped-def]
    model = new_car(backbone=WIDE, channel_embedding=channel_embedding)
    slots, luck, running, finished = Slots(model, guidance_scale != 1), random.Random(0), [], []
    for seed in range(40):
        while slots.free == 0 or luck.random() < 0.5:
            slots.step()
        settings = {"seed": seed, "guidance_scale": guidance_scale, "temperature": luck.choice([0.7, 1.0]),
                    "top_k": luck.choice([0, 5])}  # fmt: skip
        prompt, num_tokens = luck.choice(PROMPTS), luck.choice([1, 5, 8])
        against = luck.choice(["", "a red car"]) if slots.guided else ""
        one = drawing(model, prompt, num_tokens, against, **settings)
        slots.join(one)
        running.append((one, prompt, {"num_tokens": num_tokens, "negative_prompt": against} | settings))
        if luck.random() < 0.2:  # somebody goes away
            gone = luck.choice([d for d in slots.places if d])
            slots.leave(gone)
            running = [entry for entry in running if entry[0] is not gone]
    while len(slots):
        slots.step()
    finished = [entry for entry in running if entry[0].done]
    assert len(finished) == len(running) > 25
    for one, prompt, settings in finished:
        alone = model.generate(prompt, **settings).ids
        assert alone.tolist() == [one.ids]


@pytest.mark.parametrize("guided", [False, True])
def test_the_bits_of_a_row_do_not_depend_on_where_the_others_are(new_car, guided: bool) -> None:  # type: ignore[no-untyped-def]
    model = new_car(backbone=WIDE)
    texts, others, none = (
        model.text.encode([words] * CHUNK_ROWS, 24) for words in ("a green dog", "three small black cats", "")
    )
    texts, others = (text_rows(text, none if guided else None, CHUNK_ROWS) for text in (texts, others))
    ids = torch.tensor([3, 1, 4, 1, 5])
    only = torch.zeros(CHUNK_ROWS, dtype=torch.bool)
    with sampling_mode(model, True):
        alone = Rows(model, guided)
        first = alone.begin(range(CHUNK_ROWS), texts)[0]
        expected = [first, *(alone.step(i.repeat(CHUNK_ROWS))[0] for i in ids)]
        among = Rows(model, guided)
        among.begin(range(CHUNK_ROWS), others)
        for _ in range(3):
            among.step(torch.arange(CHUNK_ROWS))
        seen = [among.begin([6], texts)[0]]
        going = only.clone()
        going[[1, 6]] = True
        for i in ids:
            tokens = torch.arange(CHUNK_ROWS)
            tokens[6] = i
            seen.append(among.step(tokens, going)[6])
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_an_image_that_cannot_be_drawn_fails_alone(car: CAR) -> None:
    slots, good = Slots(car, True), drawing(car, "a green dog", seed=3)
    bad = drawing(car, "a", guidance_scale=1e39)
    slots.join(bad)
    slots.join(good)
    while len(slots):
        slots.step()
    assert isinstance(bad.error, InputError)
    assert good.ids == car.generate("a green dog", seed=3).ids[0].tolist()


def test_a_backbone_with_another_state_is_refused(new_car) -> None:  # type: ignore[no-untyped-def]
    model = new_car(backbone=WIDE | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0})
    with pytest.raises(InputError, match="a qwen3 keeps something else"):
        Slots(model, False)
    among = model.generate(PROMPTS, seed=2).ids  # it draws all the same
    assert torch.equal(among[3:4], model.generate(PROMPTS[3], seed=5).ids)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_hold_other_backbones(new_car, kind: str) -> None:  # type: ignore[no-untyped-def]
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = new_car(backbone=gpt2 if kind == "gpt2" else WIDE | {"model_type": kind}).double()
    settings = SamplingSettings(seed=3, guidance_scale=2.0)
    assert can_have_rows(model)
    assert torch.equal(Sampler(model, settings).generate(PROMPTS).ids, naive_ids(model, PROMPTS, settings))
