"""Pictures of nameable things in ten colours: Fluent emoji of COCO classes, or shapes drawn here.

A picture is RGBA, cut to what is visible, its longer side HELD_SIDE pixels, or as many as larger images have. A set
keeps what it has made, so a scene costs a paste each.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from channelvq.data.backdrop import Colour
from channelvq.data.drawn.shapes import SHAPES, draw_shape
from channelvq.errors import InputError

SpriteSetName = Literal["fluent", "shapes"]
HELD_SIDE = 96

COLOURS: dict[str, Colour] = {
    "red": (222, 36, 36),
    "orange": (250, 135, 15),
    "yellow": (250, 215, 30),
    "green": (40, 165, 60),
    "blue": (35, 95, 230),
    "purple": (130, 50, 185),
    "pink": (250, 130, 190),
    "brown": (120, 70, 35),
    "black": (32, 32, 36),
    "white": (246, 246, 246),
}
# How far shading may leave the colour, towards black and towards white, before it would be called another colour.
SHADE_LIMITS: dict[str, tuple[float, float]] = {
    "red": (0.5, 0.35), "orange": (0.3, 0.35), "yellow": (0.35, 0.5), "green": (0.5, 0.35), "blue": (0.5, 0.35),
    "purple": (0.5, 0.3), "pink": (0.25, 0.45), "brown": (0.5, 0.2), "black": (0.7, 0.25), "white": (0.45, 1.0),
}  # fmt: skip

# COCO class -> hexcode of the emoji; dog and cat by their faces, since their bodies look alike at 20 pixels.
FLUENT_CLASSES: dict[str, str] = {
    "airplane": "2708", "apple": "1f34e", "backpack": "1f392", "banana": "1f34c", "bear": "1f43b", "bed": "1f6cf",
    "bicycle": "1f6b2", "bird": "1f426", "boat": "26f5", "book": "1f4d5", "bottle": "1f37e", "bowl": "1f963",
    "broccoli": "1f966", "bus": "1f68c", "cake": "1f370", "car": "1f697", "carrot": "1f955", "cat": "1f431",
    "cell phone": "1f4f1", "chair": "1fa91", "clock": "23f0", "computer keyboard": "2328",
    "computer mouse": "1f5b1", "couch": "1f6cb", "cow": "1f404", "cup": "2615", "dog": "1f436", "donut": "1f369",
    "elephant": "1f418", "frisbee": "1f94f", "giraffe": "1f992", "handbag": "1f45c", "horse": "1f40e",
    "hot dog": "1f32d", "kite": "1fa81", "knife": "1f52a", "laptop": "1f4bb", "motorcycle": "1f3cd",
    "orange": "1f34a", "pizza": "1f355", "potted plant": "1fab4", "sandwich": "1f96a", "scissors": "2702",
    "sheep": "1f411", "skateboard": "1f6f9", "skis": "1f3bf", "spoon": "1f944", "sports ball": "26bd",
    "stop sign": "1f6d1", "suitcase": "1f9f3", "teddy bear": "1f9f8", "tennis racket": "1f3be", "tie": "1f454",
    "toilet": "1f6bd", "toothbrush": "1faa5", "traffic light": "1f6a6", "train": "1f682", "truck": "1f69a",
    "tv": "1f4fa", "umbrella": "2602", "vase": "1f3fa", "wine glass": "1f377", "zebra": "1f993",
}  # fmt: skip


class SpriteSet(ABC):
    """Things that can be drawn, with their class names; their pictures are kept."""

    names: tuple[str, ...]
    natural: bool  # whether things have colours of their own

    def __init__(self, side: int) -> None:
        self.side = side
        self._held: dict[tuple[str, str | None], Image.Image] = {}

    def picture(self, name: str, colour: str | None) -> Image.Image:
        """The thing called `name` in one of COLOURS (None: as it is), RGBA, its longer side as the set was asked."""
        if (name, colour) not in self._held:
            self._held[name, colour] = (
                trim(self._drawn(name), self.side) if colour is None else recolour(self.picture(name, None), colour)
            )
        return self._held[name, colour]

    @abstractmethod
    def _drawn(self, name: str) -> Image.Image:
        """The thing as it is, RGBA, of any size."""


class FluentSprites(SpriteSet):
    """Fluent emoji of 63 COCO classes; fetches the package when it is missing."""

    natural = True

    def __init__(self, side: int = HELD_SIDE, cache: Path | str | None = None) -> None:
        from channelvq.data.fetched.emoji import list_sprites  # shapes do without it

        super().__init__(side)
        self._paths = {sprite.code: sprite.path for sprite in list_sprites("fluent", cache=cache)}
        self.names = tuple(name for name, code in sorted(FLUENT_CLASSES.items()) if code in self._paths)

    def _drawn(self, name: str) -> Image.Image:
        with Image.open(self._paths[FLUENT_CLASSES[name]]) as file:
            return file.convert("RGBA")


class ShapeSprites(SpriteSet):
    """Simple shapes drawn here, grey where no colour is given."""

    names = SHAPES
    natural = False

    def __init__(self, side: int = HELD_SIDE) -> None:
        super().__init__(side)

    def _drawn(self, name: str) -> Image.Image:
        return draw_shape(name, self.side)


def sprite_set(name: SpriteSetName, cache: Path | str | None = None, side: int = HELD_SIDE) -> SpriteSet:
    """The set called `name`, its pictures' longer side `side` pixels.

    Raises InputError for another name, or if the Fluent package cannot be fetched.
    """
    match name:
        case "fluent":
            return FluentSprites(side, cache)
        case "shapes":
            return ShapeSprites(side)
        case _:
            raise InputError(f"sprites {name!r}: the sets are fluent, shapes")


def trim(picture: Image.Image, side: int = HELD_SIDE) -> Image.Image:
    """Cut to what is visible and scale the longer side to `side` pixels."""
    box = picture.getchannel("A").point([255 * (alpha > 32) for alpha in range(256)]).getbbox()
    if box is None:
        raise InputError("a sprite has no visible pixel")
    width, height = box[2] - box[0], box[3] - box[1]
    scale = side / max(width, height)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    return picture.resize(shape, Image.Resampling.LANCZOS, box=box)


def recolour(picture: Image.Image, colour: str) -> Image.Image:
    """The picture in shades of one colour: its average brightness becomes the colour itself."""
    pixels = np.asarray(picture, dtype=np.float32)
    alpha = pixels[..., 3] / 255
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    mean = float((light * alpha).sum() / alpha.sum())
    spread = float(np.sqrt((((light - mean) ** 2) * alpha).sum() / alpha.sum()))
    darker, lighter = SHADE_LIMITS[colour]
    # Two standard deviations reach the limit, so that flat and contrasting pictures shade alike.
    shade = np.clip((light - mean) / max(2 * spread, 0.12), -1, 1)
    target = np.array(COLOURS[colour], np.float32)
    down = target * (1 + np.minimum(shade, 0) * darker)[..., None]
    out = down + (np.maximum(shade, 0) * lighter)[..., None] * (255 - down)
    return Image.fromarray(np.concatenate([out, pixels[..., 3:]], axis=2).round().astype(np.uint8), "RGBA")
