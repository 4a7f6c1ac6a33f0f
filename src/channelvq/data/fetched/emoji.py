"""Emoji as images with text: three art sets of the same ~1,900 labels, drawn on coloured backgrounds.

Splits go by label, never by image: all skin tones, genders and art sets of a label are in the same split, else the
held-out images would be near copies of the training ones.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageOps
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass as settings

from channelvq.config import STRICT
from channelvq.data.backdrop import NUM_DRAWS, WHITE, Backdrop, Colour, random_backdrop
from channelvq.data.fetched.packages import fetch
from channelvq.data.source import Sample
from channelvq.data.split import Split, assign_split
from channelvq.errors import InputError
from channelvq.files import parse_json
from channelvq.images import to_tensor

Style = Literal["fluent", "noto", "twemoji"]

STYLE_PACKAGES: dict[str, str] = {"fluent": "fluent-emoji", "noto": "noto", "twemoji": "twemoji"}
SKIN_TONES = frozenset(("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"))
PERSON, MAN, WOMAN = "1f9d1", "1f468", "1f469"
GENDER_AND_DIRECTION = frozenset(("2640", "2642", "27a1"))
SHORTEST_HELD_SIDE = 96


@dataclass(frozen=True)
class Sprite:
    """One emoji picture. code: its normalised hexcode; base: that of its label without skin tones."""

    code: str
    base: str
    label: str
    path: Path


def normalise(hexcode: str) -> str:
    """A hexcode in the one spelling all sets can be joined on: lower case, no padding, no variation selector."""
    parts = [part.lstrip("0") for part in hexcode.lower().split("-")]
    return "-".join(part for part in parts if part != "fe0f")


def family(base: str) -> str:
    """What the split is decided by: a hexcode without tones, with its man, woman and person versions as one."""
    parts = [part for part in base.split("-") if part not in SKIN_TONES]
    if len(parts) > 1 and parts[0] in (MAN, WOMAN):
        parts[0] = PERSON
    kept: list[str] = []
    for part in parts:
        if part in GENDER_AND_DIRECTION and kept[-1:] == ["200d"]:
            kept.pop()
        else:
            kept.append(part)
    return "-".join(kept)


@lru_cache(maxsize=4)
def load_labels(path: Path) -> dict[str, tuple[str, str]]:
    """Normalised hexcode -> (hexcode of the label without skin tones, text) from emojibase's data.json."""
    labels = {}
    for entry in parse_json(path.read_text(encoding="utf-8")):
        base = normalise(entry["hexcode"])
        for variant in (*entry.get("skins", ()), entry):
            labels[normalise(variant["hexcode"])] = (base, variant["label"])
    return labels


def list_sprites(style: Style, *, skin_tones: bool = False, cache: Path | str | None = None) -> list[Sprite]:
    """All labelled pictures of an art set in the order of their hexcodes; fetches the packages when they are missing.

    Without `skin_tones` only the base picture of each label. Raises InputError for an unknown style.
    """
    if style not in STYLE_PACKAGES:
        raise InputError(f"emoji style {style!r} is unknown: the styles are {', '.join(STYLE_PACKAGES)}")
    images = fetch(STYLE_PACKAGES[style], cache=cache) / "images"
    labels = load_labels(fetch("emojibase-data", cache=cache) / "data.json")
    sprites: dict[str, Sprite] = {}
    for path in sorted(images.iterdir()):
        code = normalise(path.stem)
        if code in labels and (skin_tones or code == labels[code][0]):
            # A few pictures are there twice, with and without zero padding.
            sprites[code] = Sprite(code, *labels[code], path)
    return [sprites[code] for code in sorted(sprites)]


@settings(frozen=True, config=STRICT)
class EmojiConfig:
    """Emoji on coloured backgrounds; style: the art set; augment: varied scale and place in the train split."""

    kind: Literal["emoji"] = "emoji"
    style: Style = "fluent"
    augment: bool = True
    weight: NonNegativeFloat = 1.0

    def build(self, size: int, split: Split) -> "EmojiSource":
        """The source of one split, with images of size x size."""
        return EmojiSource(style=self.style, size=size, split=split, augment=None if self.augment else False)


class EmojiSource:
    """The pictures of one art set in one split, each composited on a background; text is the label.

    background: "white", a fixed (r, g, b), or "random": a plain colour, white or a soft two-colour gradient.
    augment: scale 0.6 to 1.0 and a random place; None means in the train split only. flip: mirror half of them.
    """

    def __init__(
        self,
        style: Style = "fluent",
        size: int = 64,
        split: Split = "train",
        background: Literal["random", "white"] | Colour = "random",
        skin_tones: bool = False,
        augment: bool | None = None,
        flip: bool = False,
        cache: Path | str | None = None,
    ) -> None:
        if size < 8:
            raise InputError(f"emoji: size {size} is too small, at least 8 pixels are needed")
        sprites = list_sprites(style, skin_tones=skin_tones, cache=cache)
        self.sprites = [sprite for sprite in sprites if assign_split(family(sprite.base)) == split]
        self.size, self.background, self.flip = size, background, flip
        self.augment = split == "train" if augment is None else augment
        self._held: dict[int, Image.Image] = {}
        self._backdrop([0.0] * NUM_DRAWS)  # a bad background is refused here, not at the first sample

    def __len__(self) -> int:
        return len(self.sprites)

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """Emoji `index`: uint8 (3, size, size); background, place and size are drawn from `generator`."""
        draws = torch.rand(12, generator=generator).tolist()
        canvas = self._backdrop(draws[:NUM_DRAWS])
        side = round(self.size * (0.6 + 0.4 * draws[8])) if self.augment else self.size
        sprite = self._sprite(index).resize((side, side), Image.Resampling.BICUBIC)
        if self.flip and draws[9] < 0.5:
            sprite = ImageOps.mirror(sprite)
        place = tuple(int(draw * (self.size - side + 1)) for draw in draws[10:12])
        canvas.paste(sprite, (place[0], place[1]), sprite)
        return Sample(to_tensor(canvas), self.sprites[index].label, self.sprites[index].base)

    def _sprite(self, index: int) -> Image.Image:
        """The decoded picture, kept in memory scaled down to about what is needed."""
        if index not in self._held:
            with Image.open(self.sprites[index].path) as file:
                picture = file.convert("RGBA")
            side = min(max(picture.size), max(SHORTEST_HELD_SIDE, self.size))
            self._held[index] = picture.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
        return self._held[index]

    def _backdrop(self, draws: list[float]) -> Image.Image:
        match self.background:
            case "random":
                return random_backdrop(draws).paint(self.size)
            case "white":
                return Backdrop(WHITE, WHITE).paint(self.size)
            case (int(), int(), int()) as colour:
                return Backdrop(colour, colour).paint(self.size)
        raise InputError(f"emoji: background {self.background!r} is neither random, white nor (red, green, blue)")
