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
from torch import Tensor

from channelvq.data.backdrop import NUM_DRAWS, PLAIN, Backdrop, random_backdrop, standing_out
from channelvq.data.captions import ALL_TASKS, TASKS, Plan, Task, free_caption, geneval_prompt
from channelvq.data.scene_plan import Draws, coloured_things, draw_plan
from channelvq.data.source import Sample
from channelvq.data.split import Split
from channelvq.data.sprites import COLOURS, HELD_SIDE, SpriteSetName, sprite_set
from channelvq.errors import InputError

Captions = Literal["mixed", "geneval", "free"]
Backdrops = Literal["plain"]
Places = Literal["grid"]
SMALLEST_SIZE = 32
TRIES_FOR_CONTRAST = 16
# Places "grid", in units of the image's side: steps of a cell of an 8 x 8 latent map, so that what is moved is the same
# latents, moved; sides of a single thing and of one among others; where the other coordinate of two things may be.
GRID_STEP = 1 / 8
GRID_SIDES = (0.5, 0.75)
GRID_SMALL = 7 / 16
GRID_ACROSS = (7 / 16, 9 / 16)


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

    def geneval_record(self) -> dict[str, Any]:
        """The line of a GenEval prompt file that asks for this scene."""
        return geneval_record(self.plan)


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


class SceneSource:
    """`length` numbered scenes of one split (see scene_plan.py for what is held out), size x size pixels.

    sprites: "fluent" (63 COCO classes; fetches the package) or "shapes" (16 shapes, no download). captions: GenEval's
    prompts, free sentences, or half of each. tasks: what scenes are made for, in turn: by default the six of GenEval.
    backdrops: "plain", one of four colours, white where the things stand out from it; None, any colour or gradient.
    places: "grid", a few sizes in steps of an eighth of the image's side; None, any that do not overlap.
    """

    def __init__(
        self,
        size: int = 64,
        split: Split = "train",
        sprites: SpriteSetName = "fluent",
        captions: Captions = "mixed",
        tasks: Sequence[Task] = TASKS,
        backdrops: Backdrops | None = None,
        places: Places | None = None,
        length: int = 100_000,
        cache: Path | str | None = None,
    ) -> None:
        if size < SMALLEST_SIZE or length < 1:
            raise InputError(f"scenes: size {size}, length {length}: need size >= {SMALLEST_SIZE} and length >= 1")
        if not tasks or not set(tasks) <= set(ALL_TASKS):
            raise InputError(f"scenes: tasks {list(tasks)}: need one or more of {', '.join(ALL_TASKS)}")
        if captions not in ("mixed", "geneval", "free"):
            raise InputError(f"scenes: captions {captions!r} is neither mixed, geneval nor free")
        if backdrops not in ("plain", None):
            raise InputError(f"scenes: backdrops {backdrops!r} is neither plain nor None")
        if places not in ("grid", None):
            raise InputError(f"scenes: places {places!r} is neither grid nor None")
        self.size, self.captions, self.length = size, captions, length
        self.backdrops, self.places = backdrops, places
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
        places = _layout(plan, len(shown), self.places, draws)
        canvas = _backdrop([picture for _, _, picture in shown], self.backdrops, draws).paint(self.size)
        objects = tuple(
            SceneObject(name, _draw(canvas, picture, place), colour)
            for (name, colour, picture), place in zip(shown, places, strict=True)
        )
        prompt = geneval_prompt(plan)
        free = self.captions == "free" or (self.captions == "mixed" and draws.uniform() < 0.5)
        caption = free_caption(plan, draws.many(3)) if free else prompt
        pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()
        return Scene(pixels, caption, prompt, plan.tag, plan, objects)

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


def _layout(plan: Plan, count: int, places: Places | None, draws: Draws) -> list[_Place]:
    """Places that do not overlap: anywhere for one, the two halves for two, quarters for three and four."""
    if count == 1:
        return [_anywhere(places, draws)]
    if count > 2:
        quarters = [(x, y) for y in (0.25, 0.75) for x in (0.25, 0.75)]
        while len(quarters) > count:
            quarters.remove(draws.choose(quarters))
        return [_in_quarter(x, y, (0.32, 0.46), places, draws) for x, y in quarters]
    vertical = plan.relation in ("above", "below") if plan.relation else draws.uniform() < 0.5
    first_is_low = plan.relation in ("above", "left of") if plan.relation else draws.uniform() < 0.5
    # The other coordinate varies less than the one that the relation is about, so the relation is beyond doubt.
    across = [draws.choose(GRID_ACROSS) if places == "grid" else draws.uniform(0.38, 0.62) for _ in range(2)]
    along = (0.25, 0.75) if first_is_low else (0.75, 0.25)
    centres = [(a, b) if vertical else (b, a) for a, b in zip(across, along, strict=True)]
    return [_in_quarter(x, y, (0.34, 0.47), places, draws) for x, y in centres]


def _anywhere(places: Places | None, draws: Draws) -> _Place:
    """The place of a single thing, all of it within the image."""
    if places == "grid":
        side = draws.choose(GRID_SIDES)
        lefts = [k * GRID_STEP for k in range(round((1 - side) / GRID_STEP) + 1)]
        return _Place(draws.choose(lefts) + side / 2, draws.choose(lefts) + side / 2, side)
    side = draws.uniform(0.4, 0.85)
    return _Place(draws.uniform(side / 2, 1 - side / 2), draws.uniform(side / 2, 1 - side / 2), side)


def _in_quarter(x: float, y: float, sides: tuple[float, float], places: Places | None, draws: Draws) -> _Place:
    """A place about (x, y) that stays within half a side of the image."""
    if places == "grid":
        return _Place(x, y, GRID_SMALL)
    side = draws.uniform(*sides)
    slack = 0.25 - side / 2
    return _Place(x + draws.uniform(-slack, slack), y + draws.uniform(-slack, slack), side)


def _backdrop(pictures: list[Image.Image], backdrops: Backdrops | None, draws: Draws) -> Backdrop:
    """A backdrop that every thing stands out from, or the best of some."""
    choices = (
        (Backdrop(colour, colour) for colour in PLAIN)
        if backdrops == "plain"
        else (random_backdrop(draws.many(NUM_DRAWS)) for _ in range(TRIES_FOR_CONTRAST))
    )
    return standing_out(choices, np.array([_mean_colour(picture) for picture in pictures]))


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
