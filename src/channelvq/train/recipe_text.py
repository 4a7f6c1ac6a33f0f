"""Recipes for people: what each is for, and all of its settings with their help, from their classes' docstrings."""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, get_args, get_origin, get_type_hints

from channelvq.config import recipe_text, to_dict
from channelvq.train.task import Recipe

WIDTH = 100
COMMANDS = ("cvq ", "python -m ", "scripts/")  # lines of a leading comment that are no prose
# Settings of many classes, where a class has nothing of its own to say.
COMMON = {
    "task": "what is trained",
    "train": "the loop, whatever is trained",
    "model": "what it is made of",
    "objective": "what it is trained for",
    "nested": "nested channel dropout",
    "data": "what it is trained on",
    "kind": "which kind it is; the settings beside it are those of this kind",
    "weight": "its share, over the sum of the weights beside it",
    "codebook_size": "N, the number of codes",
    "base_channels": "channels at the full resolution",
    "num_blocks": "residual blocks of each level",
    "multipliers": "channels of each level over base_channels",
    "min_side": "the smallest crop, in pixels",
    "kmeans_iterations": "of the k-means over features that the codebook starts from",
    "iterations": "of the k-means over features that the codebook starts from",
    "seed": "decides what is drawn",
    "beta": "weight of the commitment term",
    "codebook_weight": "weight of the codebook term",
    "start": "what the first codewords are",
    "distance": "by which codewords are compared with a token; none is Euclidean, cosine compares directions",
}


def comment(name_or_path: str | Path) -> str:
    """The prose of a recipe's leading comment, "" where there is none: without the commands in it."""
    lines = []
    for line in recipe_text(str(name_or_path)).splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").strip()
        if not text.startswith(COMMANDS):
            lines.append(text)
    return " ".join(lines)


def purpose(name_or_path: str | Path) -> str:
    """The first sentence of it."""
    return re.split(r"(?<=\.)\s(?=[A-Z])", comment(name_or_path), maxsplit=1)[0]


def settings_help(cls: type) -> dict[str, str]:
    """What the docstrings of a class of settings, and of those it inherits from, say of each: "name: what it is."."""
    names = {field.name for field in fields(cls)}
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= dict(_told(base.__doc__ or "", names))
    own = {name: text for name, text in found.items() if not text.startswith("see `")}
    return {name: own.get(name) or COMMON.get(name, "") for name in names}


def _told(docstring: str, names: set[str]) -> Iterator[tuple[str, str]]:
    text, name = " ".join(inspect.cleandoc(docstring).split()), "|".join(sorted(names, key=len, reverse=True))
    starts = list(re.finditer(rf"(?:^|(?<=[.;:] ))((?:{name})(?:(?:, | and )(?:{name}))*): ", text)) if names else []
    for i, start in enumerate(starts):
        end = starts[i + 1].start() if i + 1 < len(starts) else len(text)
        for one in re.split(", | and ", start[1]):
            yield one, text[start.end() : end].strip().rstrip(".;")


def shown(name: str, recipe: Recipe) -> str:
    """A resolved recipe as YAML that `cvq train` takes, a comment above each setting."""
    head = [f"# {line}" for line in wrap(comment(name), WIDTH)]
    if base := _base(name):
        head.append(f"# Built on {base}.")
    return "\n".join([*head, *_lines(recipe, to_dict(recipe), "")]) + "\n"


def _base(name: str) -> str | None:
    """The recipe that a recipe names as its base."""
    found = re.search(r"^base: *(\S+)", recipe_text(name), re.MULTILINE)
    return found[1] if found else None


def _lines(settings: Any, plain: dict[str, Any], indent: str) -> Iterator[str]:
    """settings: a dataclass or a dict of some; plain: the same as plain data."""
    described = settings_help(type(settings)) if is_dataclass(settings) else {}
    choices = _choices(type(settings)) if is_dataclass(settings) else {}
    for name, value in plain.items():
        own = settings[name] if isinstance(settings, dict) else getattr(settings, name)
        told = described.get(name, "")
        if choices.get(name):
            told += f" ({' | '.join(choices[name])})"
        yield from (f"{indent}# {line}" for line in wrap(told.strip(), WIDTH - len(indent)))
        if isinstance(value, dict) and value and (is_dataclass(own) or _of_settings(own)):
            yield f"{indent}{name}:"
            yield from _lines(own, value, indent + "  ")
        else:
            yield f"{indent}{name}: {json.dumps(value)}"


def _of_settings(value: Any) -> bool:
    return isinstance(value, dict) and any(is_dataclass(entry) for entry in value.values())


def _choices(cls: type) -> dict[str, list[str]]:
    """Of the settings that take one of some words, those words."""
    hints = get_type_hints(cls)
    return {name: words for name, hint in hints.items() if len(words := _words(hint)) > 1}


def _words(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    return []
