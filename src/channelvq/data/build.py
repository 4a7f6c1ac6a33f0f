"""Sources by configuration: what `data:` of a recipe may hold."""

from dataclasses import field
from typing import Annotated, Protocol

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT, of_kind
from channelvq.data.source import Source
from channelvq.data.split import EmptySplitError, Split
from channelvq.data.stream import Mixture
from channelvq.errors import InputError
from channelvq.registry import Registry


class SourceConfig(Protocol):
    """What the settings of every kind of source have."""

    @property
    def kind(self) -> str:
        """The name that the kind is registered by."""
        ...

    @property
    def weight(self) -> float:
        """Its share of a mixture, over the sum of all weights."""
        ...

    def build(self, size: int, split: Split) -> Source:
        """The source of one split, with images of size x size."""
        ...


SOURCES: Registry[type[SourceConfig]] = Registry(
    "data source",
    {
        "scenes": "channelvq.data.drawn.scenes:SceneConfig",
        "waves": "channelvq.data.drawn.waves:WaveConfig",
        "emoji": "channelvq.data.fetched.emoji:EmojiConfig",
        "photos": "channelvq.data.fetched.photos:PhotoConfig",
        "fashion-mnist": "channelvq.data.fetched.fashion:FashionConfig",
        "domain": "channelvq.data.fetched.domains:DomainConfig",
        "clips": "channelvq.data.clips:ClipsConfig",
        "folder": "channelvq.data.files.folder:FolderConfig",
        "manifest": "channelvq.data.files.folder:ManifestConfig",
        "shards": "channelvq.data.files.shards:ShardsConfig",
        "huggingface": "channelvq.data.files.huggingface:HuggingFaceConfig",
        "tokens": "channelvq.data.files.tokens:TokensConfig",
    },
)
AnySourceConfig = Annotated[SourceConfig, of_kind(SOURCES)]


def _drawn_scenes() -> dict[str, SourceConfig]:
    return {"scenes": SOURCES["scenes"]()}


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """sources: by any name, mixed by weight. validation_images: how many the evaluation during training looks at."""

    sources: dict[str, AnySourceConfig] = field(default_factory=_drawn_scenes)
    validation_images: PositiveInt = 512


def build_mixture(config: DataConfig, size: int, split: Split, seed: int) -> Mixture:
    """All sources of a recipe in one split; raises InputError when none has a weight, or one has no image there."""
    used = {name: source for name, source in config.sources.items() if source.weight > 0}
    if not used:
        raise InputError("data.sources: every weight is 0, there is nothing to read")
    sources = {name: _named(name, source, size, split) for name, source in used.items()}
    return Mixture(sources, {name: source.weight for name, source in used.items()}, seed)


def _named(name: str, config: SourceConfig, size: int, split: Split) -> Source:
    """The source of a config, where what a data set lacks is told in the words of the recipe."""
    try:
        return config.build(size, split)
    except EmptySplitError as error:
        key = f"data.sources.{name}"
        mend = f"lower {key}.validation and {key}.test" if split == "train" else f"set for example {key}.{split}=0.2"
        raise InputError(
            f"{error.problem}; the hash of an image's name decides on its split, "
            f"so a small data set needs other shares: {mend}, or add images"
        ) from None
