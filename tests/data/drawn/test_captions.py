import itertools

import pytest

from channelvq.data.drawn.captions import Plan, Thing, english_plural, free_caption, geneval_plural, geneval_prompt

DOG, BEAR, APPLE = Thing("dog"), Thing("teddy bear"), Thing("apple")
GRID = list(itertools.product((0.0, 0.2, 0.4, 0.6, 0.8, 0.99), (0.1, 0.5, 0.9), (0.1, 0.9)))


@pytest.mark.parametrize(
    ("plan", "prompt"),
    [
        (Plan("single_object", (APPLE,)), "a photo of an apple"),
        (Plan("two_object", (DOG, BEAR)), "a photo of a dog and a teddy bear"),
        (Plan("counting", (Thing("banana"),), count=2), "a photo of two bananas"),
        (Plan("counting", (Thing("bus"),), count=4), "a photo of four buses"),
        (Plan("colors", (Thing("car", "red"),)), "a photo of a red car"),
        (Plan("colors", (Thing("cow", "orange"),)), "a photo of an orange cow"),
        (Plan("position", (DOG, BEAR), relation="right of"), "a photo of a dog right of a teddy bear"),
        (
            Plan("color_attr", (Thing("wine glass", "purple"), Thing("apple", "black"))),
            "a photo of a purple wine glass and a black apple",
        ),
    ],
)
def test_prompts_are_in_the_grammar_of_geneval(plan: Plan, prompt: str) -> None:
    assert geneval_prompt(plan) == prompt


def test_plurals_of_both_spellings() -> None:
    assert [english_plural(name) for name in ("knife", "couch", "bus", "sheep", "skis", "tv")] == [
        "knives", "couches", "buses", "sheep", "pairs of skis", "tvs",
    ]  # fmt: skip
    assert [geneval_plural(name) for name in ("knife", "couch", "bus")] == ["knifes", "couchs", "buses"]


def test_free_sentences_vary_and_keep_every_word_that_matters() -> None:
    plan = Plan("color_attr", (Thing("orange", "blue"), Thing("scissors", "red")))
    captions = {free_caption(plan, draws) for draws in GRID}
    assert len(captions) >= 5
    assert all("a blue orange" in caption and "a pair of red scissors" in caption for caption in captions)
    counted = {free_caption(Plan("counting", (Thing("knife"),), count=3), draws) for draws in GRID}
    assert all("three knives" in caption for caption in counted)


def test_free_sentences_never_turn_a_relation_around() -> None:
    plan = Plan("position", (DOG, BEAR), relation="left of")
    captions = {free_caption(plan, draws) for draws in GRID}
    assert len(captions) >= 12
    for caption in captions:
        dog_first = caption.index("dog") < caption.index("teddy bear")
        assert ("left" in caption) == dog_first
        assert ("right" in caption) != dog_first
