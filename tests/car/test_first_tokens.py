"""A generator of the first tokens of an image: what it draws, writes, scores and refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from channelvq.car.export import export_car
from channelvq.car.exported import Exported
from channelvq.car.likelihood import encode_captions
from channelvq.car.model import CAR
from channelvq.codec import compress_ids, decompress_ids
from channelvq.data.files.token_shards import TokenSet
from channelvq.errors import InputError
from channelvq.evaluate.next_channel import evaluate_next_channel

PROMPTS = ["a green dog", "three small black cats"]


@pytest.fixture(scope="module")
def short() -> CAR:
    from tests.car.conftest import make_car

    return make_car(num_tokens=5)


def some_ids(rows: int) -> torch.Tensor:
    return torch.randint(0, 32, (rows, 8), generator=torch.Generator().manual_seed(0))


def test_it_draws_what_the_tokenizer_makes_of_as_many_tokens(short: CAR) -> None:
    out = short.generate(PROMPTS, seed=3)
    assert out.ids.shape == (2, 5)
    expected = short.tokenizer.detokenize(out.ids)
    assert [image.tobytes() for image in out.images] == [image.tobytes() for image in expected]
    assert torch.equal(out.ids, short.generate(PROMPTS, seed=3, exact=False).ids)
    with pytest.raises(InputError, match="num_tokens"):
        short.generate(PROMPTS, num_tokens=6)


def test_it_is_the_generator_of_all_tokens_as_far_as_it_goes(short: CAR, car: CAR) -> None:
    # The same weights: they do not depend on how many tokens there are.
    assert torch.equal(short.generate(PROMPTS, seed=3).ids, car.generate(PROMPTS, seed=3, num_tokens=5).ids)


def test_files_and_exports_keep_it(short: CAR, tmp_path: Path) -> None:
    short.save_pretrained(tmp_path / "saved")
    loaded = CAR.from_pretrained(tmp_path / "saved")
    assert (loaded.num_tokens, loaded.tokenizer.num_tokens) == (5, 8)
    assert torch.equal(loaded.generate(PROMPTS).ids, short.generate(PROMPTS).ids)
    assert export_car(short, tmp_path / "export").num_tokens == 5
    assert Exported(tmp_path / "export").num_tokens == 5


def test_it_is_measured_on_its_tokens(short: CAR) -> None:
    ids = some_ids(4)
    held_out = TokenSet(ids.int(), ("a green dog",) * 4, tuple("abcd"))
    report = evaluate_next_channel(short, held_out, ids)
    assert report.nats.shape == (4, 5)
    text = encode_captions(short, held_out.captions)
    assert torch.equal(report.nats, evaluate_next_channel(short, replace(held_out, ids=ids[:, :5].int()), ids).nats)
    assert text.shape[0] == 4


def test_a_file_by_its_scores_has_no_more_tokens(short: CAR) -> None:
    ids = some_ids(2)
    files = compress_ids(ids[:, :5], short.tokenizer, car=short)
    assert [list(one.ids) for one in decompress_ids(files, short.tokenizer, car=short)] == ids[:, :5].tolist()
    with pytest.raises(InputError, match="writes the first 5 tokens of an image, 8 are asked for; give num_tokens=5"):
        compress_ids(ids, short.tokenizer, car=short)


def test_more_tokens_than_the_tokenizer_has_are_refused(new_car: Callable[..., CAR]) -> None:
    with pytest.raises(InputError, match="num_tokens 9: the image tokenizer has 8 tokens an image"):
        new_car(num_tokens=9)
