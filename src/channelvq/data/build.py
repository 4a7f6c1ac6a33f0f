"""Sources by configuration: what `data:` of a recipe may hold."""

from dataclasses import field
from typing import Annotated, Literal, TypedDict

from pydantic import Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT
from channelvq.data.captions import TASKS, Task
from channelvq.data.emoji import EmojiSource
from channelvq.data.folder import Crop, EmptySplitError, FolderSource, ManifestSource
from channelvq.data.photos import PhotoSource
from channelvq.data.scenes import SceneSource
from channelvq.data.source import Source
from channelvq.data.split import Split
from channelvq.data.stream import Mixture
from channelvq.errors import InputError

Fraction = Annotated[float, Field(ge=0, le=1)]


class FileOptions(TypedDict):
    """The options that FolderSource and ManifestSource share."""

    crop: Crop
    min_side: int
    flip: bool
    validation: float
    test: float


@dataclass(frozen=True, config=STRICT)
class SceneConfig:
    """Captioned scenes drawn by our code; sprites: "shapes" needs nothing, "fluent" the package fluent-emoji.

    tasks: what is shown and said, in turn: GenEval's six, and "color_position" (both things coloured and placed).
    """

    kind: Literal["scenes"] = "scenes"
    sprites: Literal["shapes", "fluent"] = "shapes"
    tasks: tuple[Task, ...] = TASKS
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


@dataclass(frozen=True, config=STRICT, kw_only=True)
class _FilesConfig:
    """What folders and manifests share.

    crop: "center", the largest centred square, or "random", a random square of at least `min_side` px. flip: mirror
    half of the samples, wrong where captions say left and right. validation, test: shares of the images, by the hash
    of their names.
    """

    weight: NonNegativeFloat = 1.0
    crop: Crop = "center"
    min_side: PositiveInt = 256
    flip: bool = False
    validation: Fraction = 0.05
    test: Fraction = 0.10

    def __post_init__(self) -> None:
        if self.validation + self.test > 1:
            raise ValueError(f"validation {self.validation} and test {self.test} must together be at most 1")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FolderConfig(_FilesConfig):
    """Every image below the folder `root`."""

    root: str
    kind: Literal["folder"] = "folder"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ManifestConfig(_FilesConfig):
    """The images that the .jsonl or .csv file `path` lists; its field `split`, where there is one, decides."""

    path: str
    kind: Literal["manifest"] = "manifest"


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
            return SceneSource(size=size, split=split, sprites=config.sprites, tasks=config.tasks)
        case EmojiConfig():
            return EmojiSource(style=config.style, size=size, split=split, augment=None if config.augment else False)
        case PhotoConfig():
            return PhotoSource(size=size, split=split, min_side=config.min_side)
        case FolderConfig():
            return FolderSource(config.root, size, split, **_file_options(config))
        case ManifestConfig():
            return ManifestSource(config.path, size, split, **_file_options(config))


def _file_options(config: _FilesConfig) -> FileOptions:
    return {
        "crop": config.crop,
        "min_side": config.min_side,
        "flip": config.flip,
        "validation": config.validation,
        "test": config.test,
    }


def build_mixture(config: DataConfig, size: int, split: Split, seed: int) -> Mixture:
    """All sources of a recipe in one split; raises InputError when none has a weight, or one has no image there."""
    used = {name: source for name, source in config.sources.items() if source.weight > 0}
    if not used:
        raise InputError("data.sources: every weight is 0, there is nothing to read")
    sources = {name: _named(name, source, size, split) for name, source in used.items()}
    return Mixture(sources, {name: source.weight for name, source in used.items()}, seed)


def _named(name: str, config: SourceConfig, size: int, split: Split) -> Source:
    """`build_source`, where what a data set lacks is told in the words of the recipe."""
    try:
        return build_source(config, size, split)
    except EmptySplitError as error:
        key = f"data.sources.{name}"
        mend = f"lower {key}.validation and {key}.test" if split == "train" else f"set for example {key}.{split}=0.2"
        raise InputError(
            f"{error.problem}; the hash of an image's name decides on its split, "
            f"so a small data set needs other shares: {mend}, or add images"
        ) from None
