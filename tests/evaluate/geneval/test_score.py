"""GenEval's rules by closed-form cases: each task right and wrong, the margins, and records that are refused."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from channelvq.errors import InputError
from channelvq.evaluate.geneval.score import RELATIONS, faults, prompt_of, relations, task_scores
from channelvq.nn.detector import Detection


def thing(
    name: str, x: float = 32, y: float = 32, colour: str = "green", score: float = 0.9, w: float = 20, h: float = 20
) -> Detection:
    """An object by its centre."""
    return Detection(name, (x - w / 2, y - h / 2, x + w / 2, y + h / 2), colour, score)


def line(include: Sequence[dict[str, Any]], exclude: Sequence[dict[str, Any]] = (), tag: str = "position") -> Any:
    return {"tag": tag, "include": list(include), "prompt": "a photo of something"} | (
        {"exclude": list(exclude)} if exclude else {}
    )


def wrong(record: Any, *detections: Detection) -> list[str]:
    """The kinds of faults."""
    return [fault.split(":")[0] for fault in faults(prompt_of(record), detections)]


SINGLE = line([{"class": "dog", "count": 1}], tag="single_object")
TWO = line([{"class": "dog", "count": 1}, {"class": "cat", "count": 1}], tag="two_object")
THREE = line([{"class": "cup", "count": 3}], [{"class": "cup", "count": 4}], tag="counting")
RED = line([{"class": "car", "count": 1, "color": "red"}], tag="colors")
RIGHT = line([{"class": "bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}])
PAIR = line(
    [{"class": "car", "count": 1, "color": "red"}, {"class": "cup", "count": 1, "color": "blue"}], tag="color_attr"
)


def test_single_and_two_objects() -> None:
    assert wrong(SINGLE, thing("dog")) == []
    assert wrong(SINGLE, thing("dog"), thing("cat")) == []  # others may be there
    assert wrong(SINGLE, thing("cat")) == ["missing"]
    assert wrong(SINGLE) == ["missing"]
    assert wrong(TWO, thing("cat"), thing("dog")) == []
    assert wrong(TWO, thing("dog"), thing("dog")) == ["missing"]
    assert wrong(TWO) == ["missing", "missing"]


@pytest.mark.parametrize(
    ("count", "kinds"), [(0, ["missing"]), (2, ["missing"]), (3, []), (4, ["count"]), (9, ["count"])]
)
def test_counting_wants_neither_fewer_nor_more(count: int, kinds: list[str]) -> None:
    assert wrong(THREE, *(thing("cup") for _ in range(count)), thing("dog")) == kinds


def test_without_exclude_more_are_right() -> None:
    assert wrong(line([{"class": "cup", "count": 2}]), *(thing("cup") for _ in range(5))) == []


def test_colours_are_those_of_the_likeliest_objects() -> None:
    assert wrong(RED, thing("car", colour="red")) == []
    assert wrong(RED, thing("car", colour="blue")) == ["colour"]
    assert wrong(RED, thing("car")) == ["colour"]
    assert wrong(RED, thing("car", colour="red", score=0.5), thing("car", colour="blue", score=0.6)) == ["colour"]
    assert wrong(RED, thing("car", colour="red", score=0.6), thing("car", colour="blue", score=0.5)) == []
    both = line([{"class": "car", "count": 2, "color": "red"}])
    assert wrong(both, thing("car", colour="red"), thing("car", colour="blue")) == ["colour"]


def test_two_colours_belong_each_to_its_own_thing() -> None:
    assert wrong(PAIR, thing("car", colour="red"), thing("cup", colour="blue")) == []
    assert wrong(PAIR, thing("car", colour="blue"), thing("cup", colour="red")) == ["colour", "colour"]
    assert wrong(PAIR, thing("car", colour="red")) == ["missing"]


def test_position_is_of_the_second_as_seen_from_the_one_it_names() -> None:
    assert wrong(RIGHT, thing("bear", 15), thing("dog", 50)) == []
    assert wrong(RIGHT, thing("bear", 50), thing("dog", 15)) == ["position"]
    assert wrong(RIGHT, thing("bear", 32, 15), thing("dog", 32, 50)) == ["position"]
    assert wrong(RIGHT, thing("dog", 50)) == ["missing", "position"]  # nothing to be right of
    # The one it is placed by must be right itself, its colour too.
    record = line([{"class": "bear", "count": 1, "color": "red"}, RIGHT["include"][1]])
    assert wrong(record, thing("bear", 15, colour="red"), thing("dog", 50)) == []
    assert wrong(record, thing("bear", 15, colour="pink"), thing("dog", 50)) == ["colour", "position"]
    # Every one of several must be.
    record = line([{"class": "bear", "count": 2}, RIGHT["include"][1]])
    assert wrong(record, thing("bear", 15), thing("bear", 20), thing("dog", 50)) == []
    assert wrong(record, thing("bear", 15), thing("bear", 60), thing("dog", 40)) == ["position"]


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_and_their_opposites(relation: str) -> None:
    place = {"left of": (12, 32), "right of": (52, 32), "above": (32, 12), "below": (32, 52)}[relation]
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation]
    one, other = thing("a", *place), thing("b")
    assert relations(one, other) == {relation}
    assert relations(other, one) == {opposite}


def test_margin_of_a_tenth_of_the_summed_extents() -> None:
    # Widths 20 and 20: the first 4 pixels do not count.
    assert relations(thing("a", 32), thing("b", 32)) == frozenset()
    assert relations(thing("a", 36), thing("b", 32)) == frozenset()
    # Beyond the margin, more than half of the distance must be left: (d - 4) / d > 1/2 from d = 8 on.
    assert relations(thing("a", 39.9), thing("b", 32)) == frozenset()
    assert relations(thing("a", 40.1), thing("b", 32)) == {"right of"}
    # Wide things need more.
    assert relations(thing("a", 40.1, w=40), thing("b", 32, w=40)) == frozenset()
    # On a diagonal both hold, d / sqrt(2) / d = 0.71 less the margin's share; near an axis only one does.
    assert relations(thing("a", 10, 10), thing("b", 50, 50)) == {"left of", "above"}
    assert relations(thing("a", 10, 10), thing("b", 50, 24)) == {"left of"}
    # Equal to the limit is not above it: (8 - 4) / 8 is half.
    assert relations(thing("a", 40), thing("b", 32)) == frozenset()


def test_only_sixteen_of_a_class_are_looked_at() -> None:
    record = line([{"class": "cup", "count": 1}], [{"class": "cup", "count": 17}])
    assert wrong(record, *(thing("cup") for _ in range(30))) == []


def test_score_is_the_mean_of_the_tasks_whatever_their_sizes() -> None:
    scores = task_scores(["colors"] * 4 + ["position"], [True, True, True, False, False])
    assert scores == {"overall": 0.375, "colors": 0.75, "position": 0.0}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"tag": ""}, "tag: expected text, got ''"),
        ({"prompt": 3}, "prompt: expected text, got 3"),
        ({"include": []}, "at least one requirement"),
        ({"include": {"class": "dog"}}, "include: expected a list"),
        ({"include": [{"count": 1}]}, "include[0].class: expected text, got None"),
        ({"include": [{"class": "dog", "count": 0}]}, "include[0].count: expected a whole number"),
        ({"include": [{"class": "dog", "count": True}]}, "include[0].count"),
        ({"include": [{"class": "dog", "count": 1, "color": 3}]}, "include[0].color"),
        ({"include": [{"class": "dog", "count": 1, "position": ["near", 0]}]}, "position: expected"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "not before it"),
        ({"exclude": [3]}, "exclude: expected a list"),
    ],
)
def test_wrong_records_are_named(change: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError) as error:
        prompt_of(json.loads(json.dumps(SINGLE | change)))
    assert part in str(error.value)
