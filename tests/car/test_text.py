"""Prompts as tokens: any text, a fixed slot, errors that name the prompt."""

import pytest
import torch

from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.errors import InputError

CAPTIONS = ["a photo of two bananas", "a red car left of a blue umbrella", "a green dog", "a photo of a dog"] * 3


def test_the_same_captions_in_any_order_give_the_same_tokenizer() -> None:
    one, other = train_bpe(CAPTIONS, 300), train_bpe(CAPTIONS[::-1], 300)
    assert one.to_str() == other.to_str()
    assert 256 < one.get_vocab_size() <= 300


def test_any_text_comes_back() -> None:
    text = TextTokenizer(train_bpe(CAPTIONS, 280))
    for prompt in ("a photo of two bananas", "ein Hund, größer", "犬 🐕", "tab\tnew\nline", "<|endoftext|>", "\x00"):
        batch = text.encode([prompt], 64)
        assert text.tokenizer.decode(batch.ids[0][batch.mask[0]].tolist()).lstrip(" ") == prompt


def test_the_slot_is_padded_on_the_left() -> None:
    batch = TextTokenizer(train_bpe(CAPTIONS, 400)).encode(["a dog", "a", ""], 4)
    assert batch.ids.shape == (3, 4)
    assert batch.mask.tolist() == [[False, False, True, True], [False, False, False, True], [False] * 4]
    assert torch.equal(batch.ids[~batch.mask], torch.zeros(9, dtype=torch.int64))
    # The same word is the same token at the start and inside.
    assert batch.ids[0, 2] == batch.ids[1, 3]


def test_a_prompt_that_looks_like_a_special_token_is_text() -> None:
    tokenizer = train_bpe(CAPTIONS, 280)
    tokenizer.add_special_tokens(["<|end|>"])
    text = TextTokenizer(tokenizer)
    assert tokenizer.token_to_id("<|end|>") not in text.encode(["<|end|>"], 16).ids


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a dog", "dog " * 2000], r"prompt 1 has \d{4,} tokens, the model takes at most 16"),
        (["a dog", None], "prompt 1: expected text, got NoneType"),
        ([b"dog"], "prompt 0: expected text, got bytes"),
        (["\ud800"], "prompt 0 is not valid Unicode"),
    ],
)
def test_what_cannot_be_a_prompt_is_named(prompts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextTokenizer(train_bpe(CAPTIONS, 280)).encode(prompts, 16)


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(InputError, match="255 must be at least 256"):
        train_bpe(CAPTIONS, 255)
