"""Sources by configuration: what `data:` of a recipe may hold."""

from dataclasses import field, replace
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT
from channelvq.data.drawn.captions import TASKS, Task
from channelvq.data.drawn.scenes import SceneSource
from channelvq.data.drawn.waves import WaveSource
from channelvq.data.fetched.domains import DomainName, DomainSource
from channelvq.data.fetched.emoji import EmojiSource
from channelvq.data.fetched.photos import PhotoSource
from channelvq.data.files.folder import FolderSource, ManifestSource
from channelvq.data.files.huggingface import HuggingFaceSource
from channelvq.data.files.shards import ShardSource
from channelvq.data.options import EmptySplitError, ImageOptions, SplitOrAll
from channelvq.data.source import Source
from channelvq.data.split import Split
from channelvq.data.stream import Mixture
from channelvq.errors import InputError


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
class DomainConfig:
    """Random squares of the pictures of a domain (data/domains.py), of at least `min_side` px or the domain's own."""

    name: DomainName
    kind: Literal["domain"] = "domain"
    min_side: PositiveInt | None = None
    weight: NonNegativeFloat = 1.0


@dataclass(frozen=True, config=STRICT)
class WaveConfig:
    """Coloured sine waves drawn by our code, from gradients to fine gratings (data/waves.py)."""

    kind: Literal["waves"] = "waves"
    weight: NonNegativeFloat = 1.0


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FolderConfig(ImageOptions):
    """Every image below the folder `root`.

    validation_root, test_root: folders of these splits, where they are given; `root` then has no share of them.
    labels: the first folder below the root names what is shown: "folders", or a file of names (data/labels.py).
    """

    root: str
    kind: Literal["folder"] = "folder"
    weight: NonNegativeFloat = 1.0
    validation_root: str | None = None
    test_root: str | None = None
    labels: str | None = None


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ManifestConfig(ImageOptions):
    """The images that the .jsonl or .csv file `path` lists; its field `split`, where there is one, decides."""

    path: str
    kind: Literal["manifest"] = "manifest"
    weight: NonNegativeFloat = 1.0


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ShardsConfig(ImageOptions):
    """The images and captions of the tar shards `urls`, such as "data/train-{00000..00256}.tar".

    validation_urls, test_urls: shards of these splits, where they are given; `urls` then has no share of them.
    caption_field: of .json members. captioned: leave out images without a caption.
    """

    urls: str
    kind: Literal["shards"] = "shards"
    weight: NonNegativeFloat = 1.0
    validation_urls: str | None = None
    test_urls: str | None = None
    caption_field: str = "caption"
    captioned: bool = False


@dataclass(frozen=True, config=STRICT, kw_only=True)
class HuggingFaceConfig(ImageOptions):
    """The split `split` of a data set of Hugging Face `datasets`: a name on the hub or a folder.

    subset: the data set's own configuration, where it has several. validation_split, test_split: its splits for these,
    where they are given; `split` then has no share of them. caption_column: of texts or of class labels.
    """

    name: str
    kind: Literal["huggingface"] = "huggingface"
    weight: NonNegativeFloat = 1.0
    subset: str | None = None
    split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    image_column: str = "image"
    caption_column: str | None = None


SourceConfig = Annotated[
    SceneConfig
    | EmojiConfig
    | PhotoConfig
    | DomainConfig
    | WaveConfig
    | FolderConfig
    | ManifestConfig
    | ShardsConfig
    | HuggingFaceConfig,
    Field(discriminator="kind"),
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
        case DomainConfig():
            return DomainSource(config.name, size=size, split=split, min_side=config.min_side)
        case WaveConfig():
            return WaveSource(size=size, split=split)
        case FolderConfig():
            place = _place(split, config.root, config.validation_root, config.test_root, config)
            return FolderSource(*place.at(size), labels=config.labels)
        case ManifestConfig():
            return ManifestSource(config.path, size, split, config)
        case ShardsConfig():
            place = _place(split, config.urls, config.validation_urls, config.test_urls, config)
            return ShardSource(*place.at(size), caption_field=config.caption_field, captioned=config.captioned)
        case HuggingFaceConfig():
            place = _place(split, config.split, config.validation_split, config.test_split, config)
            columns = (config.image_column, config.caption_column)
            return HuggingFaceSource(config.name, *place.at(size), subset=config.subset, columns=columns)


class _Place(NamedTuple):
    """Where the images of a split are, and which of those that are there."""

    where: str
    split: SplitOrAll
    options: ImageOptions

    def at(self, size: int) -> tuple[str, int, SplitOrAll, ImageOptions]:
        """The first arguments of a source."""
        return self.where, size, self.split, self.options


def _place(split: Split, main: str, validation: str | None, test: str | None, options: ImageOptions) -> _Place:
    """A split that has a place of its own is all that is there, and has no share of the main place."""
    own = {"validation": validation, "test": test}
    if (where := own.get(split)) is not None:
        return _Place(where, "all", options)
    return _Place(main, split, replace(options, **{name: 0.0 for name, where in own.items() if where is not None}))


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
