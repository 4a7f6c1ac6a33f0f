"""GenEval's rules (Ghosh et al. 2023, arXiv 2310.11513): whether an image shows what its prompt asks for.

    line of a prompt file -> Prompt; detections of an image -> objects by class, best score first
    include: enough of each class, in the colour, placed as asked; exclude: not more than asked

An image is right or wrong; the score of a task is the share of right images, and the score the mean over tasks.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from channelvq.data.drawn.captions import TASKS
from channelvq.errors import InputError
from channelvq.nn.detector import Detection

MOST_OBJECTS = 16  # of a class: the rest, of lower scores, is not looked at
MARGIN = 0.1  # of the summed widths (heights): an offset of the centres below this is no relation
LEAST_SHARE = 0.5  # of the distance of the centres that an offset must have beyond the margin
NO_OFFSET = 1e-3  # pixels


@dataclass(frozen=True)
class Requirement:
    """At least `count` objects of a class; colour: of all of them; position: (relation, place in `include`)."""

    name: str
    count: int
    colour: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Prompt:
    """A line of a prompt file. exclude: so many of a class, or more, make the image wrong."""

    tag: str
    text: str
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...] = ()

    @property
    def classes(self) -> frozenset[str]:
        """The names of the classes that it is about."""
        return frozenset(requirement.name for requirement in (*self.include, *self.exclude))


def prompt_of(record: Any) -> Prompt:
    """The prompt of a GenEval record; raises InputError that says what is wrong with it."""
    if not isinstance(record, dict):
        raise InputError(f"expected an object with tag, include and prompt, got {record!r}")
    tag, text = (_word(record, key, "") for key in ("tag", "prompt"))
    include = _requirements(record, "include")
    for place, requirement in enumerate(include):
        if requirement.position and not requirement.position[1] < place:
            raise InputError(f"include[{place}].position refers to include[{requirement.position[1]}], not before it")
    if not include:
        raise InputError("include: expected at least one requirement")
    return Prompt(tag, text, include, _requirements(record, "exclude"))


def _word(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}{key}: expected text, got {value!r}")
    return value


def _requirements(record: Mapping[str, Any], key: str) -> tuple[Requirement, ...]:
    given = record.get(key, [])
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise InputError(f"{key}: expected a list of objects, got {given!r}")
    return tuple(_requirement(entry, f"{key}[{i}].") for i, entry in enumerate(given))


def _requirement(record: Mapping[str, Any], where: str) -> Requirement:
    count, position = record.get("count"), record.get("position")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"{where}count: expected a whole number of at least 1, got {count!r}")
    if position is not None:
        match position:
            case [str() as relation, int() as place] if relation in RELATIONS and place >= 0:
                position = (relation, place)
            case _:
                raise InputError(
                    f"{where}position: expected [one of {', '.join(RELATIONS)}; a place], got {position!r}"
                )
    colour = _word(record, "color", where) if "color" in record else None
    return Requirement(_word(record, "class", where), count, colour, position)


RELATIONS = ("left of", "right of", "above", "below")


def relations(a: Detection, b: Detection) -> frozenset[str]:
    """Where `a` is as seen from `b`: none, one or two of "left of", "right of", "above", "below".

    The offset of the centres, less MARGIN of the summed extents, must be more than half of their distance.
    """
    centres = [((o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2) for o in (a, b)]
    extents = [(o.box[2] - o.box[0], o.box[3] - o.box[1]) for o in (a, b)]
    offset = [p - q for p, q in zip(*centres, strict=True)]
    margins = [MARGIN * (p + q) for p, q in zip(*extents, strict=True)]
    beyond = [math.copysign(max(abs(d) - m, 0.0), d) for d, m in zip(offset, margins, strict=True)]
    if all(abs(d) < NO_OFFSET for d in beyond):
        return frozenset()
    dx, dy = (d / math.hypot(*offset) for d in beyond)
    held = (dx < -LEAST_SHARE, dx > LEAST_SHARE, dy < -LEAST_SHARE, dy > LEAST_SHARE)
    return frozenset(name for name, holds in zip(RELATIONS, held, strict=True) if holds)


def faults(prompt: Prompt, detections: Sequence[Detection]) -> list[str]:
    """What is wrong with an image, in words; nothing where it is right.

    detections: of the image, above the detector's threshold. Only the likeliest of a class count where `count` of them
    are asked for; a requirement that another one is placed by must itself hold.
    """
    objects = _by_class(detections)
    wrong: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for requirement in prompt.include:
        chosen = objects.get(requirement.name, [])[: requirement.count]
        fault = _fault(requirement, chosen, groups)
        wrong += [fault] if fault else []
        groups.append(None if fault else chosen)
    for requirement in prompt.exclude:
        count = len(objects.get(requirement.name, []))
        if count >= requirement.count:
            wrong.append(f"count: {count} of {requirement.name}, fewer than {requirement.count} were asked for")
    return wrong


def _by_class(detections: Sequence[Detection]) -> dict[str, list[Detection]]:
    objects: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda detection: -detection.score):
        of_class = objects.setdefault(detection.name, [])
        if len(of_class) < MOST_OBJECTS:
            of_class.append(detection)
    return objects


def _fault(
    requirement: Requirement, chosen: Sequence[Detection], groups: Sequence[Sequence[Detection] | None]
) -> str | None:
    """The first thing wrong about a requirement; it begins with missing, colour or position."""
    name = requirement.name
    if len(chosen) < requirement.count:
        return f"missing: {len(chosen)} of {requirement.count} {name}"
    if requirement.colour is not None:
        colours = [detection.colour for detection in chosen]
        if colours.count(requirement.colour) < requirement.count:
            return f"colour: {name} is {', '.join(colours)}, not {requirement.colour}"
    if requirement.position is None:
        return None
    relation, place = requirement.position
    targets = groups[place]
    if targets is None:
        return f"position: nothing for {name} to be {relation}"
    for a in chosen:
        for b in targets:
            if relation not in (there := relations(a, b)):
                return f"position: {name} is {' and '.join(sorted(there)) or 'nowhere clear'}, not {relation} {b.name}"
    return None


def task_scores(tags: Sequence[str], right: Sequence[float]) -> dict[str, float]:
    """The share of right images of each task that occurs, and their mean as "overall"."""
    by_task: dict[str, list[float]] = {}
    for tag, value in zip(tags, right, strict=True):
        by_task.setdefault(tag, []).append(value)
    scores = {tag: sum(values) / len(values) for tag, values in by_task.items()}
    return {"overall": sum(scores.values()) / len(scores), **scores}


def in_order(names: Iterable[str]) -> list[str]:
    """The overall score, GenEval's tasks as it lists them, then whatever else there is."""
    names = list(names)
    known = [name for name in ("overall", *TASKS) if name in names]
    return known + sorted(set(names) - set(known))
