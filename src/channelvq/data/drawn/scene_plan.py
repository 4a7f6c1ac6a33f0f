"""What each scene shows, and which combinations are held out of training.

    (class, colour), (class, count), (class, class), (class, relation, class)

A hash of the combination puts it in one split. A training scene has combinations of the training split only; a scene
of another split is about a combination of that split. So a held-out scene asks for a combination that no training
image or caption has, of classes, colours, counts and relations that training has all seen.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import torch

from channelvq.data.drawn.captions import INVERSE, Plan, Relation, Task, Thing
from channelvq.data.drawn.sprites import COLOURS
from channelvq.data.split import Split, assign_split
from channelvq.errors import InputError

T = TypeVar("T")
RELATIONS: tuple[Relation, ...] = ("above", "below", "left of", "right of")
LARGEST_COUNT = 4
DRAWS_AT_ONCE = 64
MOST_TRIES = 10_000
# Larger than elsewhere: 16 shapes in 2 to 4 copies are 48 combinations, and every split needs some of each kind.
VALIDATION, TEST = 0.10, 0.15


@lru_cache(maxsize=1 << 16)
def held_out_split(key: str) -> Split:
    """The split that a combination belongs to."""
    return assign_split(key, validation=VALIDATION, test=TEST)


class Draws:
    """Uniform numbers of one scene, in [0, 1): a function of the words that name the scene."""

    def __init__(self, *words: object) -> None:
        digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        self._numbers: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """The next number, in [low, high)."""
        if not self._numbers:
            self._numbers = torch.rand(DRAWS_AT_ONCE, generator=self._generator).tolist()
        return low + (high - low) * self._numbers.pop()

    def many(self, count: int) -> list[float]:
        """The next `count` numbers in [0, 1)."""
        return [self.uniform() for _ in range(count)]

    def choose(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self.uniform() * len(options))]

    def choose_two(self, options: Sequence[T]) -> tuple[T, T]:
        """Two different places of the options, in random order."""
        first = int(self.uniform() * len(options))
        second = int(self.uniform() * (len(options) - 1))
        return options[first], options[second + (second >= first)]


def combinations(plan: Plan) -> tuple[list[str], list[str]]:
    """(what the scene is about, what else it combines), each as the keys that the split is a hash of."""
    pair = ["pair " + " & ".join(sorted(thing.name for thing in plan.things))] if len(plan.things) == 2 else []
    coloured = [f"colour {thing.colour} {thing.name}" for thing in plan.things if thing.colour]
    placed = [f"relation {_one_way(plan)}"] if plan.relation else []
    if plan.count > 1:
        return [f"count {plan.count} {plan.things[0].name}"], []
    return (coloured + placed, pair) if coloured or placed else (pair, [])


def _one_way(plan: Plan) -> str:
    """A left of B is B right of A: both get the same words."""
    assert plan.relation is not None
    first, second, relation = plan.things[0].name, plan.things[1].name, plan.relation
    if relation in ("below", "right of"):
        first, second, relation = second, first, INVERSE[relation]
    return f"{first} {relation} {second}"


def belongs(plan: Plan, split: Split) -> bool:
    """Whether a plan may be a scene of `split`; a single object combines nothing and may be in any."""
    about, other = combinations(plan)
    keys = about + other if split == "train" else about
    return all(held_out_split(key) == split for key in keys)


def draw_plan(tag: Task, names: Sequence[str], coloured: Sequence[Thing], split: Split, draws: Draws) -> Plan:
    """A plan for the task `tag` that belongs to `split`; coloured: the coloured things of that split.

    Raises InputError if the split seems to have no combination of this kind, as may be with very few classes.
    """
    for _ in range(MOST_TRIES):
        plan = _propose(tag, names, coloured, draws)
        if plan is not None and belongs(plan, split):
            return plan
    raise InputError(f"scenes: no {tag} scene of the {split} split can be made of {len(names)} classes")


def coloured_things(names: Sequence[str], split: Split) -> list[Thing]:
    """Every class in every colour that belongs to `split`."""
    things = [Thing(name, colour) for name in names for colour in COLOURS]
    return [thing for thing in things if belongs(Plan("colors", (thing,)), split)]


def _propose(tag: Task, names: Sequence[str], coloured: Sequence[Thing], draws: Draws) -> Plan | None:
    match tag:
        case "single_object":
            return Plan(tag, (Thing(draws.choose(names)),))
        case "counting":
            return Plan(tag, (Thing(draws.choose(names)),), count=int(draws.uniform(2, LARGEST_COUNT + 1)))
        case "colors":
            return Plan(tag, (draws.choose(coloured),))
        case "color_attr" | "color_position":
            first, second = draws.choose_two(coloured)
            if first.name == second.name or first.colour == second.colour:
                return None
        case "two_object" | "position":
            first, second = (Thing(name) for name in draws.choose_two(names))
    placed = tag in ("position", "color_position")
    return Plan(tag, (first, second), relation=draws.choose(RELATIONS) if placed else None)
