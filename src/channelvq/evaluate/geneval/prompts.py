"""GenEval's prompts over the classes of our scenes: as many of each task as the official file has."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from channelvq.data.drawn.captions import Plan, Task
from channelvq.data.drawn.scene_plan import Draws
from channelvq.data.drawn.scenes import SceneSource, geneval_record
from channelvq.data.drawn.sprites import SpriteSetName
from channelvq.data.split import Split
from channelvq.evaluate.geneval.score import Prompt, prompt_of

COUNTS: dict[Task, int] = {
    "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100,
}  # fmt: skip
TRIES = 40  # plans drawn for each prompt that is wanted, in search of one that is not there yet


@dataclass(frozen=True)
class PromptSet:
    """Prompts, as the plans that scenes of them are drawn by, and what draws those."""

    plans: tuple[Plan, ...]
    source: SceneSource

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of a prompt file."""
        return [geneval_record(plan) for plan in self.plans]

    @property
    def prompts(self) -> list[Prompt]:
        """What an image of each must show."""
        return [prompt_of(record) for record in self.records]

    @property
    def sha256(self) -> str:
        """Of the prompt file."""
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        return hashlib.sha256(lines.encode()).hexdigest()

    def scenes(self, samples: int = 1, first: int = 0) -> UInt8[Tensor, "n 3 h w"]:
        """`samples` scenes of each prompt, all of a prompt together; first: the number of the first of them."""
        numbers = range(first, first + samples)
        return torch.stack([self.source.scene_of(plan, k).image for plan in self.plans for k in numbers])


def prompt_set(split: Split, size: int = 64, sprites: SpriteSetName = "fluent") -> PromptSet:
    """The prompts of one split: combinations of classes, colours, counts and relations that no other split has.

    The same on every machine. Where a split has fewer combinations than the official file has prompts of a task
    (single objects, counting), they come again in turn.
    """
    source = SceneSource(size, split, sprites, captions="geneval")
    plans = [plan for task, count in COUNTS.items() for plan in _plans(source, task, count)]
    return PromptSet(tuple(plans), source)


def _plans(source: SceneSource, task: Task, count: int) -> Sequence[Plan]:
    distinct: dict[Plan, None] = {}
    for number in range(TRIES * count):
        distinct[source.plan(task, Draws("geneval", source.set_name, source.split, task, number))] = None
        if len(distinct) == count:
            break
    plans = list(distinct)
    return [plans[i % len(plans)] for i in range(count)]
