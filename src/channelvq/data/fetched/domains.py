"""Kinds of pictures that the bundled weights were not trained for: textures, drawings, astronomy, medical pictures.

They are for measuring how a tokenizer carries over, on this machine: their licences are not all such that weights
trained on them may be given away, so no bundled weights come from them. Splits go by source: by the art set of a
texture, by the motif of a drawing, by the object in the sky, never by crop.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass as settings

from channelvq.config import STRICT
from channelvq.data.fetched.crops import CropSource, Picture
from channelvq.data.fetched.packages import fetch
from channelvq.data.split import Split, assign_split
from channelvq.errors import InputError

DomainName = Literal["textures", "astronomy", "drawings", "histology", "retina"]
LONGEST_HELD_SIDE = 512
TEST_SHARE, VALIDATION_SHARE = 0.20, 0.10


@dataclass(frozen=True)
class Domain:
    """Where a kind of pictures comes from.

    package: of the catalogue. files: a regular expression that the paths below images/ match; its first group is what a
    file shares with its near copies, and the split goes by it, less what matches `ignored`. min_side: of a crop, in
    pixels of the picture.
    validation, test: these sources by hand, where there are few; else the hash of a source decides. only_test: all is.
    """

    package: str
    files: str
    min_side: int
    validation: frozenset[str] = frozenset()
    test: frozenset[str] = frozenset()
    only_test: bool = False
    ignored: str | None = None


DOMAINS: Mapping[DomainName, Domain] = {
    # Sets of one artist share stones and metals: base_wall and base_trim are one source.
    "textures": Domain(
        "textures", r"([a-z]+).*\.jpg", 128, validation=frozenset(("clown", "e", "pulchr")),
        test=frozenset(("cosmo", "evil", "mc", "oquartz", "organics", "stone")),
    ),
    "astronomy": Domain("astronomy", r"([a-z]+[0-9]*).*\.png", 256),
    # Names that differ in numbers or by "bw" (black and white) are mostly one motif. Mateya's have 168 million pixels.
    "drawings": Domain("drawings", r"(?!.*mateya)(.+)\.png", 256, ignored=r"_bw(?=_|$)|[0-9]+[a-z]?(?=_|$)|[0-9]"),
    "histology": Domain("medical", r"(ihc)\.png", 64, only_test=True),
    "retina": Domain("medical", r"(retina)\.jpg", 256, only_test=True),
}  # fmt: skip


def domain_pictures(name: DomainName, split: Split, cache: Path | str | None = None) -> list[Picture]:
    """The picture files of a split, in the order of their paths, which are their keys; fetches the package.

    Raises InputError for an unknown domain, and where the package cannot be had.
    """
    if name not in DOMAINS:
        raise InputError(f"domain {name!r} is unknown: the domains are {', '.join(get_args(DomainName))}")
    folder = fetch(DOMAINS[name].package, cache=cache) / "images"
    keys = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [Picture(key, folder / key) for key in keys if picture_split(name, key) == split]


def picture_source(name: DomainName, key: str) -> str | None:
    """What a picture shares with its near copies, such as "gothic", "m34" or "bus"; None: it is not of the domain."""
    domain = DOMAINS[name]
    match = re.fullmatch(domain.files, key)
    if match is None or domain.ignored is None:
        return None if match is None else match[1]
    return "_".join(filter(None, re.sub(domain.ignored, "", match[1]).split("_"))) or match[1]


def picture_split(name: DomainName, key: str) -> Split | None:
    """The split of a picture, by its source; None: it is not of the domain."""
    domain, source = DOMAINS[name], picture_source(name, key)
    if source is None:
        return None
    if domain.only_test or source in domain.test:
        return "test"
    if domain.test:
        return "validation" if source in domain.validation else "train"
    return assign_split(f"{name}/{source}", VALIDATION_SHARE, TEST_SHARE)


@settings(frozen=True, config=STRICT, kw_only=True)
class DomainConfig:
    """Random squares of the pictures of a domain, of at least `min_side` px or the domain's own (`DOMAINS`).

    name: of the domain.
    """

    name: DomainName
    kind: Literal["domain"] = "domain"
    min_side: PositiveInt | None = None
    weight: NonNegativeFloat = 1.0

    def build(self, size: int, split: Split) -> "DomainSource":
        """The source of one split, with images of size x size."""
        return DomainSource(self.name, size=size, split=split, min_side=self.min_side)


class DomainSource(CropSource):
    """Random squares of the pictures of a domain in one split, mirrored in the train split; key: the file's path."""

    def __init__(
        self,
        name: DomainName,
        size: int = 64,
        split: Split = "train",
        min_side: int | None = None,
        crops: int | None = None,
        cache: Path | str | None = None,
    ) -> None:
        pictures = domain_pictures(name, split, cache)
        super().__init__(
            name,
            pictures,
            size,
            min_side=DOMAINS[name].min_side if min_side is None else min_side,
            longest_side=LONGEST_HELD_SIDE,
            crops=crops,
            flip=split == "train",
            what=f"picture of the {split} split",
        )
