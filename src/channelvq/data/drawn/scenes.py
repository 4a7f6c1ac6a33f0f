"""Captioned scenes made on the fly: one to four nameable things on a plain background, with their ground truth.

    index -> plan (what to show) -> layout (where) -> backdrop that stands out from the things -> pixels, caption

Everything about scene i of a split follows from the split and i, so the same scene comes back on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from channelvq.config import STRICT
from channelvq.data.backdrop import NUM_DRAWS, Backdrop, random_backdrop
from channelvq.data.drawn.captions import ALL_TASKS, TASKS, Plan, Task, free_caption, geneval_prompt
from channelvq.data.drawn.scene_plan import Draws, coloured_things, draw_plan
from channelvq.data.drawn.sprites import COLOURS, HELD_SIDE, SpriteSetName, sprite_set
from channelvq.data.source import Sample
from channelvq.data.split import Split
from channelvq.errors import InputError
from channelvq.images import to_tensor

Captions = Literal["mixed", "geneval", "free"]
SMALLEST_SIZE = 32
ENOUGH_CONTRAST = 110.0  # distance in RGB between a thing's mean colour and the background
TRIES_FOR_CONTRAST = 16


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene. box: left, top, right, bottom in pixels, right and bottom exclusive.

    colour: one of the ten, or None where the thing has its own colours.
    """

    name: str
    box: tuple[int, int, int, int]
    colour: str | None


@dataclass(frozen=True)
class Scene:
    """An image with all that is known of it.

    prompt: in GenEval's grammar; caption: the same, or a free sentence of that meaning.
    """

    image: UInt8[Tensor, "3 h w"]
    caption: str
    prompt: str
    tag: Task
    plan: Plan
    objects: tuple[SceneObject, ...]


def geneval_record(plan: Plan) -> dict[str, Any]:
    """The line of a GenEval prompt file for a plan: the thing that the other is placed by comes first."""
    include: list[dict[str, Any]] = [
        {"class": thing.name, "count": plan.count} | ({"color": thing.colour} if thing.colour else {})
        for thing in plan.things
    ]
    if plan.relation:
        include = [include[1], include[0] | {"position": [plan.relation, 0]}]
    record: dict[str, Any] = {"tag": plan.tag, "include": include}
    if plan.count > 1:
        record["exclude"] = [{"class": plan.things[0].name, "count": plan.count + 1}]
    return record | {"prompt": geneval_prompt(plan)}


@settings(frozen=True, config=STRICT)
class SceneConfig:
    """Captioned scenes drawn by our code; sprites: "shapes" needs nothing, "fluent" the package fluent-emoji.

    tasks: what is shown and said, in turn: GenEval's six, and "color_position" (both things coloured and placed).
    """

    kind: Literal["scenes"] = "scenes"
    sprites: Literal["shapes", "fluent"] = "shapes"
    tasks: tuple[Task, ...] = TASKS
    weight: NonNegativeFloat = 1.0

    def build(self, size: int, split: Split) -> "SceneSource":
        """The source of one split, with images of size x size."""
        return SceneSource(size=size, split=split, sprites=self.sprites, tasks=self.tasks)


class SceneSource:
    """`length` numbered scenes of one split (see scene_plan.py for what is held out), size x size pixels.

    sprites: "fluent" (63 COCO classes; fetches the package) or "shapes" (16 shapes, no download). captions: GenEval's
    prompts, free sentences, or half of each. tasks: what scenes are made for, in turn: by default the six of GenEval.
    """

    def __init__(
        self,
        size: int = 64,
        split: Split = "train",
        sprites: SpriteSetName = "fluent",
        captions: Captions = "mixed",
        tasks: Sequence[Task] = TASKS,
        length: int = 100_000,
        cache: Path | str | None = None,
    ) -> None:
        if size < SMALLEST_SIZE or length < 1:
            raise InputError(f"scenes: size {size}, length {length}: need size >= {SMALLEST_SIZE} and length >= 1")
        if not tasks or not set(tasks) <= set(ALL_TASKS):
            raise InputError(f"scenes: tasks {list(tasks)}: need one or more of {', '.join(ALL_TASKS)}")
        if captions not in ("mixed", "geneval", "free"):
            raise InputError(f"scenes: captions {captions!r} is neither mixed, geneval nor free")
        self.size, self.captions, self.length = size, captions, length
        self.split: Split = split
        self.tasks, self.set_name = tuple(tasks), sprites
        self.sprites = sprite_set(sprites, cache, max(HELD_SIDE, size))
        self.coloured = coloured_things(self.sprites.names, split)

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """Scene `index` with its caption; `generator` is not used. key: the prompt, the same for scenes of one plan."""
        scene = self.scene(index)
        return Sample(scene.image, scene.caption, scene.prompt)

    def scene(self, index: int) -> Scene:
        """Scene `index` with its ground truth: uint8 (3, size, size)."""
        draws = Draws("scene", self.set_name, self.split, index)
        return self._drawn(self.plan(self.tasks[index % len(self.tasks)], draws), draws)

    def scene_of(self, plan: Plan, number: int) -> Scene:
        """Scene `number` of those that show a given plan, which may be of any split."""
        return self._drawn(plan, Draws("scene of", self.set_name, plan, number))

    def plan(self, task: Task, draws: Draws) -> Plan:
        """What a scene of this split may show for a task."""
        return draw_plan(task, self.sprites.names, self.coloured, self.split, draws)

    def _drawn(self, plan: Plan, draws: Draws) -> Scene:
        shown = [self._shown(thing.name, thing.colour, draws) for thing in plan.things for _ in range(plan.count)]
        places = _layout(plan, len(shown), draws)
        canvas = _backdrop([picture for _, _, picture in shown], draws).paint(self.size)
        objects = tuple(
            SceneObject(name, _draw(canvas, picture, place), colour)
            for (name, colour, picture), place in zip(shown, places, strict=True)
        )
        prompt = geneval_prompt(plan)
        free = self.captions == "free" or (self.captions == "mixed" and draws.uniform() < 0.5)
        caption = free_caption(plan, draws.many(3)) if free else prompt
        return Scene(to_tensor(canvas), caption, prompt, plan.tag, plan, objects)

    def _shown(self, name: str, colour: str | None, draws: Draws) -> tuple[str, str | None, Image.Image]:
        """A thing as it will be drawn: one without a look of its own gets any colour where none is asked for."""
        if colour is None and not self.sprites.natural:
            colour = draws.choose(tuple(COLOURS))
        return name, colour, self.sprites.picture(name, colour)


@dataclass(frozen=True)
class _Place:
    """Centre and longer side, in units of the image's side."""

    x: float
    y: float
    side: float


def _layout(plan: Plan, count: int, draws: Draws) -> list[_Place]:
    """Places that do not overlap: anywhere for one, the two halves for two, quarters for three and four."""
    if count == 1:
        side = draws.uniform(0.4, 0.85)
        return [_Place(draws.uniform(side / 2, 1 - side / 2), draws.uniform(side / 2, 1 - side / 2), side)]
    if count > 2:
        quarters = [(x, y) for y in (0.25, 0.75) for x in (0.25, 0.75)]
        while len(quarters) > count:
            quarters.remove(draws.choose(quarters))
        return [_jitter(x, y, draws.uniform(0.32, 0.46), draws) for x, y in quarters]
    vertical = plan.relation in ("above", "below") if plan.relation else draws.uniform() < 0.5
    first_is_low = plan.relation in ("above", "left of") if plan.relation else draws.uniform() < 0.5
    # The other coordinate varies less than the one that the relation is about, so the relation is beyond doubt.
    across = [draws.uniform(0.38, 0.62) for _ in range(2)]
    along = (0.25, 0.75) if first_is_low else (0.75, 0.25)
    centres = [(a, b) if vertical else (b, a) for a, b in zip(across, along, strict=True)]
    return [_jitter(x, y, draws.uniform(0.34, 0.47), draws) for x, y in centres]


def _jitter(x: float, y: float, side: float, draws: Draws) -> _Place:
    slack = 0.25 - side / 2
    return _Place(x + draws.uniform(-slack, slack), y + draws.uniform(-slack, slack), side)


def _backdrop(pictures: list[Image.Image], draws: Draws) -> Backdrop:
    """A random backdrop that every thing stands out from, or the best of some."""
    colours = np.array([_mean_colour(picture) for picture in pictures])
    best, best_contrast = None, -1.0
    for _ in range(TRIES_FOR_CONTRAST):
        backdrop = random_backdrop(draws.many(NUM_DRAWS))
        contrast = float(np.sqrt(((_shades(backdrop)[:, None] - colours[None]) ** 2).sum(axis=2)).min())
        if contrast > best_contrast:
            best, best_contrast = backdrop, contrast
        if contrast >= ENOUGH_CONTRAST:
            break
    assert best is not None
    return best


def _shades(backdrop: Backdrop) -> np.ndarray:
    """Five colours along a backdrop, (5, 3): between its ends a gradient may pass through the colour of a thing."""
    first, second = np.array(backdrop.first, np.float32), np.array(backdrop.second, np.float32)
    return first + np.linspace(0, 1, 5)[:, None] * (second - first)


def _mean_colour(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture.resize((16, 16)), dtype=np.float32)
    return (pixels[..., :3] * pixels[..., 3:]).sum(axis=(0, 1)) / pixels[..., 3].sum()


def _draw(canvas: Image.Image, picture: Image.Image, place: _Place) -> tuple[int, int, int, int]:
    """Paste a picture in its place; gives its box, which is all within the canvas."""
    size = canvas.width
    scale = place.side * size / max(picture.size)
    width, height = (max(1, round(extent * scale)) for extent in picture.size)
    left = min(max(0, round(place.x * size - width / 2)), size - width)
    top = min(max(0, round(place.y * size - height / 2)), size - height)
    small = picture.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(small, (left, top), small)
    return left, top, left + width, top + height
