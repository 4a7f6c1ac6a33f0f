"""Sampling: an image depends on its prompt and its seed, and on nothing else."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from tests.car.oracle import naive_ids

from channelvq.car.group import sampling_mode, uniforms
from channelvq.car.model import CAR
from channelvq.car.sampling import Sampler
from channelvq.car.settings import SamplingSettings
from channelvq.errors import InputError

PROMPTS = ["a green dog", "a red car left of a blue umbrella", "", "three small black cats and a photo", "a"]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b)


def test_ids_depend_on_prompt_and_seed(car: CAR) -> None:
    ids = car.generate(["a green dog", "a red car"] * 2, guidance_scale=1.0).ids
    assert ids.shape == (4, 8)
    assert ids.dtype == torch.int64
    assert 0 <= int(ids.min()) <= int(ids.max()) < 32
    others = car.generate(["a red car", "a green dog"] * 2, guidance_scale=1.0).ids
    assert not any(same(a, b) for a, b in zip(ids, others, strict=True))
    assert not same(ids[0], ids[2])
    assert same(ids, car.generate(["a green dog", "a red car"] * 2, guidance_scale=1.0).ids)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_cached_equals_uncached(car64: CAR, guidance_scale: float) -> None:
    settings = {"guidance_scale": guidance_scale, "seed": 5, "temperature": 0.9}
    naive = naive_ids(car64, PROMPTS, SamplingSettings(**settings))  # type: ignore[arg-type]
    cached = car64.generate(PROMPTS, **settings)  # type: ignore[arg-type]
    assert same(cached.ids, naive)
    assert same(car64.generate(PROMPTS, exact=False, **settings).ids, naive)  # type: ignore[arg-type]
    assert cached.seeds == (5, 6, 7, 8, 9)


def sampler_logits(
    car: CAR, prompts: list[str], ids: torch.Tensor, guidance_scale: float, start: int = 0, exact: bool = True
) -> torch.Tensor:
    """(B, C - start, N) logits that the cached sampler sees from token `start` on, given the ids before each."""
    sampler = Sampler(car, SamplingSettings(guidance_scale), exact=exact)
    (group,) = sampler._groups(sampler._request(prompts, prefix_ids=ids))
    seen = []
    with sampling_mode(car, exact):
        for k in range(start, ids.shape[1]):
            group.ids = group.prefix[:, :k]
            seen.append(group.next_logits()[: len(prompts)])
    return torch.stack(seen, dim=1)


def test_cached_logits_are_those_of_one_pass_without_padding(car: CAR) -> None:
    ids = car.generate(PROMPTS).ids
    cached = sampler_logits(car, PROMPTS, ids, guidance_scale=1.0)
    for i, prompt in enumerate(PROMPTS):
        text = car.text.encode([prompt], 24)
        unpadded = text.ids[text.mask][None]
        with torch.no_grad():
            whole = car(unpadded, torch.ones_like(unpadded, dtype=torch.bool), ids[i : i + 1]).logits[0]
        torch.testing.assert_close(cached[i], whole, atol=1e-4, rtol=1e-4)


def test_score_is_the_log_probability_that_the_sampler_saw(car: CAR) -> None:
    ids = car.generate(PROMPTS, guidance_scale=1.0).ids
    seen = sampler_logits(car, PROMPTS, ids, 1.0).log_softmax(2).gather(2, ids[:, :, None])[:, :, 0]
    torch.testing.assert_close(car.score(PROMPTS, ids), seen, atol=1e-4, rtol=1e-4)
    assert float(seen.std()) > 0.1
    for k in (1, 3):
        assert car.score(PROMPTS, ids[:, :k]).shape == (5, k)
        torch.testing.assert_close(car.score(PROMPTS, ids[:, :k]), seen[:, :k], atol=1e-4, rtol=1e-4)
    assert same(car.score(PROMPTS, ids)[1:2], car.score(PROMPTS[1], ids[1]))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_an_image_does_not_depend_on_its_neighbours(car: CAR, guidance_scale: float) -> None:
    prompts = PROMPTS * 2  # ten: more than a group
    batch = car.generate(prompts, seed=3, guidance_scale=guidance_scale).ids
    for i in (0, 1, 2, 7, 9):
        assert same(batch[i : i + 1], car.generate(prompts[i], seed=3 + i, guidance_scale=guidance_scale).ids)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_logits_of_an_image_are_the_same_bits_whatever_is_around_it(new_car, guidance_scale: float) -> None:  # type: ignore[no-untyped-def]
    # Wide enough that kernels do differ by shape on common CPUs: ids alone would seldom tell.
    model = new_car(backbone={"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2})
    ids = model.generate(PROMPTS[0]).ids
    alone = sampler_logits(model, PROMPTS[:1], ids, guidance_scale)[0]
    for prompts, place in ((PROMPTS, 0), (PROMPTS[::-1], 4), (PROMPTS[:2], 0)):
        among = sampler_logits(model, prompts, ids.expand(len(prompts), 8), guidance_scale)[place]
        assert same(among, alone)
    continued = sampler_logits(model, PROMPTS[:1], ids, guidance_scale, start=5)[0]
    assert same(continued, alone[5:])
    torch.testing.assert_close(sampler_logits(model, PROMPTS[:1], ids, guidance_scale, exact=False)[0], alone,
                               atol=1e-3, rtol=1e-3)  # fmt: skip


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_streaming_ends_with_what_generate_gives(car: CAR, guidance_scale: float) -> None:
    prompts = PROMPTS * 2
    whole = car.generate(prompts, seed=1, guidance_scale=guidance_scale).ids
    steps = list(car.stream(prompts, every=3, seed=1, guidance_scale=guidance_scale))
    assert [step.ids.shape[1] for step in steps] == [3, 6, 8]
    assert all(same(step.ids, whole[:, : step.ids.shape[1]]) for step in steps)
    assert [step.ids.shape[1] for step in car.stream("a", every=4, num_tokens=4)] == [4]
    assert [step.ids.shape[1] for step in car.stream("a", every=100)] == [8]


@pytest.mark.parametrize("exact", [True, False])
def test_a_sampler_draws_what_the_model_draws_with_the_same_settings(car64: CAR, exact: bool) -> None:
    settings = SamplingSettings(guidance_scale=2.0, temperature=0.8, top_k=20, top_p=0.9, seed=4)
    sampler, keywords = Sampler(car64, settings, exact=exact), asdict(settings)
    drawn = car64.generate(PROMPTS, exact=exact, **keywords)
    assert same(sampler.generate(PROMPTS).ids, drawn.ids)
    assert sampler.generate(PROMPTS).seeds == drawn.seeds
    ours, theirs = sampler.stream(PROMPTS, 3), car64.stream(PROMPTS, 3, exact=exact, **keywords)
    assert all(same(a.ids, b.ids) for a, b in zip(ours, theirs, strict=True))
    assert same(sampler.score(PROMPTS, drawn.ids), car64.score(PROMPTS, drawn.ids, exact=exact))


def test_fewer_tokens_are_the_beginning_of_more(car: CAR) -> None:
    whole = car.generate(PROMPTS, seed=2).ids
    for k in (1, 5):
        assert same(car.generate(PROMPTS, seed=2, num_tokens=k).ids, whole[:, :k])


@pytest.mark.parametrize("exact", [True, False])
def test_continuing_equals_an_uninterrupted_run(car: CAR, car64: CAR, exact: bool) -> None:
    model = car if exact else car64
    whole = model.generate(PROMPTS, seed=4).ids
    for k in (1, 4, 7, 8):
        prefix = model.generate(PROMPTS, seed=4, num_tokens=k).ids
        assert same(model.generate(PROMPTS, seed=4, prefix_ids=prefix, exact=exact).ids, whole)
    steps = [step.ids for step in model.stream(PROMPTS, 4, seed=4, prefix_ids=whole[:, :2], exact=exact)]
    assert [ids.shape[1] for ids in steps] == [4, 8]
    assert same(steps[-1], whole)


def test_a_given_prefix_is_kept_and_changes_what_follows(car: CAR) -> None:
    prefix = torch.tensor([[1, 2, 3]])
    ids = car.generate("a green dog", prefix_ids=prefix).ids
    assert same(ids[:, :3], prefix)
    assert not same(ids[:, 3:], car.generate("a green dog", prefix_ids=torch.tensor([[9, 8, 7]])).ids[:, 3:])
    assert same(car.generate("a green dog", prefix_ids=[1, 2, 3]).ids, ids)  # type: ignore[arg-type]


def test_temperature_zero_takes_the_likeliest_token_by_hand(car: CAR) -> None:
    text = car.text.encode(["a green dog"], 24)
    by_hand = torch.empty(1, 0, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(8):
            unknown = torch.cat([by_hand, torch.zeros(1, 1, dtype=torch.int64)], dim=1)
            last = car(text.ids, text.mask, unknown).logits[:, -1]
            by_hand = torch.cat([by_hand, last.argmax(1, keepdim=True)], dim=1)
    assert same(car.generate("a green dog", guidance_scale=1.0, temperature=0.0).ids, by_hand)
    assert same(car.generate("a green dog", seed=9, guidance_scale=1.0, temperature=0.0).ids, by_hand)
    assert same(car.generate("a green dog", guidance_scale=1.0, top_k=1).ids, by_hand)


def test_guidance(car64: CAR) -> None:
    ids = car64.generate(["a green dog"]).ids
    conditional, nothing = (sampler_logits(car64, [prompt], ids, 1.0) for prompt in ("a green dog", ""))
    torch.testing.assert_close(
        sampler_logits(car64, ["a green dog"], ids, 3.0), nothing + 3 * (conditional - nothing), atol=1e-5, rtol=1e-5
    )
    assert not same(ids, car64.generate(["a green dog"], guidance_scale=1.0).ids)
    with pytest.warns(UserWarning, match="ignores the prompt"):
        unconditional = car64.generate(["a green dog"], guidance_scale=0.0).ids
    assert same(unconditional, car64.generate([""], guidance_scale=1.0).ids)


def test_images_are_what_the_tokenizer_decodes(car: CAR) -> None:
    out = car.generate(["a", "a green dog"], num_tokens=3)
    assert [image.size for image in out.images] == [(16, 16)] * 2
    assert [i.tobytes() for i in out.images] == [i.tobytes() for i in car.tokenizer.detokenize(out.ids)]


def test_the_model_stays_in_the_mode_it_was_in(new_car) -> None:  # type: ignore[no-untyped-def]
    model = new_car(backbone={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                              "intermediate_size": 64, "attention_dropout": 0.5})  # fmt: skip
    expected = model.generate("a green dog", guidance_scale=1.0).ids
    model.train()
    assert same(model.generate("a green dog", guidance_scale=1.0).ids, expected)
    assert model.training


def test_the_global_generator_is_left_alone(car: CAR) -> None:
    before = torch.get_rng_state()
    car.generate("a green dog", num_tokens=2)
    assert same(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": []}, "expected a text or a list of at least one"),
        ({"prompts": ["a", "dog " * 2000]}, r"prompt 1 has \d+ tokens, the model takes at most 24"),
        ({"num_tokens": 9}, r"num_tokens: expected a whole number in 1..8, got 9"),
        ({"num_tokens": 0}, r"num_tokens: expected a whole number in 1..8, got 0"),
        ({"num_tokens": 2.0}, "num_tokens: expected a whole number"),
        ({"temperature": -1.0}, "temperature: expected 0"),
        ({"prompts": None}, "prompts: expected a text or a list .* got None"),
        ({"prompts": 5}, "prompts: expected a text or a list .* got 5"),
        ({"prompts": b"a dog"}, "prompts: expected a text or a list .* got b'a dog'"),
        ({"prompts": [b"a dog"]}, "prompt 0: expected text, got bytes"),
        ({"temperature": float("nan")}, "temperature: expected a finite number, got nan"),
        ({"temperature": float("inf")}, "temperature: expected a finite number, got inf"),
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number, got nan"),
        ({"top_p": 0.0}, "top_p: expected a number above 0"),
        ({"top_p": float("nan")}, "top_p: expected a finite number, got nan"),
        ({"seed": 1.0}, "seed: expected a whole number of at least 0, got 1.0"),
        ({"seed": True}, "seed: expected a whole number"),
        ({"seed": np.bool_(True)}, "seed: expected a whole number"),
        ({"top_k": 1.5}, "top_k: expected a whole number"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"seed": 2**64}, "seed: expected"),
        ({"prefix_ids": torch.tensor([[1, 32]])}, r"32 at image 0, token 1 is outside 0..31"),
        ({"prefix_ids": torch.tensor([[-1]])}, r"-1 at image 0, token 0 is outside 0..31"),
        ({"prefix_ids": torch.tensor([[1], [2]])}, "prefix_ids: 2 rows of ids for 1 prompts"),
        ({"prefix_ids": torch.zeros(1, 4, dtype=torch.int64), "num_tokens": 3}, "4 tokens are more than num_tokens 3"),
        ({"prefix_ids": torch.zeros(1, 9, dtype=torch.int64)}, r"k in 1..8"),
    ],
)
def test_what_cannot_be_drawn_is_named(car: CAR, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        car.generate(**{"prompts": ["a"]} | settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):  # at once, not when the first image is asked for
        car.stream(**{"prompts": ["a"]} | settings)  # type: ignore[arg-type]


def test_every_bit_of_a_seed_counts(car: CAR) -> None:
    seeds = (5, 2**32 + 5, 2**33 + 5, 5 * 2**32 + 1, 2**32, 1, 2**63 - 1)
    numbers = uniforms(seeds, 8)
    assert len(set(numbers[:, 0].tolist())) == len(seeds)
    assert 0 <= float(numbers.min()) <= float(numbers.max()) < 1
    across = car.generate(["a", "a"], seed=2**32 - 1)
    assert across.seeds == (2**32 - 1, 2**32)
    assert same(across.ids[1:], car.generate("a", seed=2**32).ids)


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-44, 1e-38])
def test_the_coldest_temperatures_take_the_likeliest_token(car: CAR, temperature: float) -> None:
    likeliest = car.generate(PROMPTS, temperature=0, top_k=5, top_p=0.9).ids
    assert same(car.generate(PROMPTS, temperature=temperature, top_k=5, top_p=0.9).ids, likeliest)


@pytest.mark.parametrize("scale", [1e39, -1e39, 1e308])
@pytest.mark.filterwarnings("ignore:guidance_scale")
def test_guidance_beyond_all_bounds_is_refused(car: CAR, scale: float) -> None:
    with pytest.raises(InputError, match=r"logits of a token are not finite: .* guidance_scale .* is too large"):
        car.generate("a", guidance_scale=scale)


def test_the_hottest_temperature_draws_all_tokens_alike(car: CAR) -> None:
    ids = car.generate("a", temperature=1e300).ids
    expected = torch.floor(uniforms([0], car.num_tokens) * car.codebook_size).long()
    assert same(ids, expected)


def test_numbers_of_numpy_and_torch_are_numbers(car: CAR) -> None:
    expected = car.generate("a green dog", seed=3, num_tokens=4, top_k=5, temperature=0.5).ids
    for kind in (np.int64, np.uint8, torch.tensor):
        out = car.generate(
            "a green dog",
            seed=kind(3),
            num_tokens=kind(4),
            top_k=kind(5),
            temperature=np.float32(0.5),  # type: ignore[arg-type]
        )
        assert same(out.ids, expected)
        assert out.seeds == (3,)
        assert [step.ids.shape[1] for step in car.stream("a", every=kind(4))] == [4, 8]  # type: ignore[arg-type]


def test_a_prefix_of_no_tokens_counts_as_none(car: CAR) -> None:
    whole = car.generate(PROMPTS[:2]).ids
    for prefix in (whole[:, :0], [[], []]):
        assert same(car.generate(PROMPTS[:2], prefix_ids=prefix).ids, whole)  # type: ignore[arg-type]
    assert same(car.generate(PROMPTS[0], prefix_ids=[]).ids, whole[:1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ids: expected"):
        car.generate(PROMPTS[:2], prefix_ids=whole[:1, :0])


def test_what_cannot_be_scored_or_streamed_is_named(car: CAR) -> None:
    with pytest.raises(InputError, match=r"77 at image 0, token 1 is outside 0..31"):
        car.score("a", torch.tensor([[1, 77]]))
    with pytest.raises(InputError, match="score: 1 rows of ids for 2 prompts"):
        car.score(["a", "b"], torch.tensor([[1, 7]]))
    with pytest.raises(InputError, match="every: expected a whole number"):
        car.stream("a", every=0)


def test_a_warning_points_at_the_caller(new_car) -> None:  # type: ignore[no-untyped-def]
    model = new_car(caption_dropout=0.0)
    with pytest.warns(UserWarning, match="trained without caption dropout") as caught:
        model.generate("a", num_tokens=1)
    assert caught[0].filename == __file__
