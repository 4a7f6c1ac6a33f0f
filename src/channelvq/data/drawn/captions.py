"""What a scene says in words: GenEval's grammar, and free sentences that mean the same.

GenEval spells every plural with -s, or -es after an s ("knifes", "couchs"): its prompts are what a generator will be
asked, so that grammar keeps its spelling; free sentences use English.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Task = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr", "color_position"]
TASKS: tuple[Task, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")  # GenEval's
ALL_TASKS: tuple[Task, ...] = (*TASKS, "color_position")  # "a red car left of a blue umbrella": both at once
Relation = Literal["above", "below", "left of", "right of"]
INVERSE: dict[Relation, Relation] = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
NUMBERS = ("zero", "one", "two", "three", "four")

PAIRS = ("scissors", "skis")
_IRREGULAR = {"knife": "knives", "sheep": "sheep"} | {name: f"pairs of {name}" for name in PAIRS}
_PHRASES: dict[Relation, tuple[str, ...]] = {
    "above": ("above", "over", "higher up than"),
    "below": ("below", "under", "beneath"),
    "left of": ("to the left of", "left of", "on the left side of"),
    "right of": ("to the right of", "right of", "on the right side of"),
}
_ONE = ("{a}", "a picture of {a}", "there is {a}", "an image showing {a}", "{a} and nothing else", "just {a}")
_SEVERAL = ("{a}", "a picture of {a}", "there are {a}", "an image showing {a}", "{a} together", "exactly {a}")
_TWO = ("{a} and {b}", "{b} and {a}", "a picture of {a} with {b}", "there is {a}, and there is {b}",
        "an image showing {a} as well as {b}", "both {a} and {b}")  # fmt: skip
_PLACED = ("{a} {r} {b}", "a picture of {a} {r} {b}", "there is {a} {r} {b}", "{a} is {r} {b}",
           "an image with {a} {r} {b}")  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One kind of object that is asked for; colour None where none is asked for."""

    name: str
    colour: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a scene must show: one thing `count` times, or two things once each, the first `relation` the second."""

    tag: Task
    things: tuple[Thing, ...]
    count: int = 1
    relation: Relation | None = None


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def english_plural(name: str) -> str:
    """The plural of a class name in English: knives, buses, couches."""
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    return f"{name}es" if name.endswith(("s", "ch", "sh", "x")) else f"{name}s"


def geneval_plural(name: str) -> str:
    """The plural of a class name as GenEval writes it."""
    return f"{name}es" if name.endswith("s") else f"{name}s"


def described(thing: Thing, pairs: bool = False) -> str:
    """A thing with its article, and its colour if it has one: "a red car"; with `pairs`, "a pair of scissors"."""
    words = thing.name if thing.colour is None else f"{thing.colour} {thing.name}"
    return f"a pair of {words}" if pairs and thing.name in PAIRS else article(words)


def geneval_prompt(plan: Plan) -> str:
    """The prompt that GenEval would give for this plan."""
    if plan.count > 1:
        return f"a photo of {NUMBERS[plan.count]} {geneval_plural(plan.things[0].name)}"
    joint = f" {plan.relation} " if plan.relation else " and "
    return "a photo of " + joint.join(described(thing) for thing in plan.things)


def free_caption(plan: Plan, draws: Sequence[float]) -> str:
    """A sentence for this plan, chosen by three uniform numbers in [0, 1)."""
    if plan.count > 1:
        return _pick(_SEVERAL, draws[0]).format(a=f"{NUMBERS[plan.count]} {english_plural(plan.things[0].name)}")
    words = [described(thing, pairs=True) for thing in plan.things]
    if len(words) == 1:
        return _pick(_ONE, draws[0]).format(a=words[0])
    if plan.relation is None:
        return _pick(_TWO, draws[0]).format(a=words[0], b=words[1])
    relation = plan.relation
    if draws[2] < 0.5:
        relation, words = INVERSE[relation], words[::-1]
    return _pick(_PLACED, draws[0]).format(a=words[0], r=_pick(_PHRASES[relation], draws[1]), b=words[1])


def _pick(options: Sequence[str], draw: float) -> str:
    return options[int(draw * len(options))]
