"""Sources by configuration: what `data:` of a recipe may hold."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT
from channelvq.data.emoji import EmojiSource
from channelvq.data.folder import FolderSource, ManifestSource
from channelvq.data.photos import PhotoSource
from channelvq.data.scenes import SceneSource
from channelvq.data.source import Source
from channelvq.data.split import Split
from channelvq.data.stream import Mixture
from channelvq.errors import InputError


@dataclass(frozen=True, config=STRICT)
class SceneConfig:
    """Captioned scenes drawn by our code; sprites: "shapes" needs nothing, "fluent" the package fluent-emoji."""

    kind: Literal["scenes"] = "scenes"
    sprites: Literal["shapes", "fluent"] = "shapes"
    weight: NonNegativeFloat = 1.0


@dataclass(frozen=True, config=STRICT)
class EmojiConfig:
    """Emoji of one art set on coloured backgrounds; augment: varied scale and place in the train split."""

    kind: Literal["emoji"] = "emoji"
    style: Literal["fluent", "noto", "twemoji"] = "fluent"
    augment: bool = True
    weight: NonNegativeFloat = 1.0


@dataclass(frozen=True, config=STRICT)
class PhotoConfig:
    """Random squares, of at least `min_side` px, of the photographs that data.photos lists."""

    kind: Literal["photos"] = "photos"
    min_side: PositiveInt = 256
    weight: NonNegativeFloat = 1.0


@dataclass(frozen=True, config=STRICT)
class FolderConfig:
    """Every image below a folder."""

    root: str
    kind: Literal["folder"] = "folder"
    weight: NonNegativeFloat = 1.0


@dataclass(frozen=True, config=STRICT)
class ManifestConfig:
    """The images that a .jsonl or .csv file lists."""

    path: str
    kind: Literal["manifest"] = "manifest"
    weight: NonNegativeFloat = 1.0


SourceConfig = Annotated[
    SceneConfig | EmojiConfig | PhotoConfig | FolderConfig | ManifestConfig, Field(discriminator="kind")
]


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """sources: by any name, mixed by weight. validation_images: how many the evaluation during training looks at."""

    sources: dict[str, SourceConfig] = field(default_factory=lambda: {"scenes": SceneConfig()})
    validation_images: PositiveInt = 512


def build_source(config: SourceConfig, size: int, split: Split) -> Source:
    """The source of a config in one split, with images of size x size."""
    match config:
        case SceneConfig():
            return SceneSource(size=size, split=split, sprites=config.sprites)
        case EmojiConfig():
            return EmojiSource(style=config.style, size=size, split=split, augment=None if config.augment else False)
        case PhotoConfig():
            return PhotoSource(size=size, split=split, min_side=config.min_side)
        case FolderConfig():
            return FolderSource(config.root, size=size, split=split)
        case ManifestConfig():
            return ManifestSource(config.path, size=size, split=split)


def build_mixture(config: DataConfig, size: int, split: Split, seed: int) -> Mixture:
    """All sources of a recipe in one split; raises InputError when none has a weight."""
    used = {name: source for name, source in config.sources.items() if source.weight > 0}
    if not used:
        raise InputError("data.sources: every weight is 0, there is nothing to read")
    sources = {name: build_source(source, size, split) for name, source in used.items()}
    return Mixture(sources, {name: source.weight for name, source in used.items()}, seed)
