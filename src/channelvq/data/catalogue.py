"""Which data packages exist: archives with exact versions and hashes, the files taken from them, their licences."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from channelvq.data.photo_list import LOMIRI, PALAPELI, PHOTOS, SCIKIT_IMAGE, SCIKIT_LEARN


@dataclass(frozen=True)
class Archive:
    """One file of a package registry.

    wanted: pattern of member names -> folder of the package they go to ("" is its top); only matching files are taken.
    sha256: of the archive; "" for wheels that differ between platforms, which pin the hash of each file instead.
    files: the SHA-256 of files by name; all of them must be found.
    """

    client: Literal["npm", "apt", "pip"]
    name: str
    version: str
    wanted: Mapping[str, str]
    sha256: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """One work to credit: its name, SPDX licence identifier ("public-domain" where there is none) and author."""

    name: str
    licence: str
    attribution: str


@dataclass(frozen=True)
class Package:
    """A data package: what `fetch(name)` downloads and whom to credit for it."""

    name: str
    archives: tuple[Archive, ...]
    works: tuple[Work, ...]

    @property
    def folder(self) -> str:
        """Its folder in the cache: changes with every change of its entry, so an old copy is never taken for it."""
        return f"{self.name}-{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}"


_FLUENT = Package(
    "fluent-emoji",
    (
        Archive(
            "npm",
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            {"package/assets/*.webp": "images"},
            "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        ),
    ),
    (Work("Fluent Emoji 3D", "MIT", "Copyright (c) Microsoft Corporation; packaged by LobeHub, copyright (c) 2023"),),
)
_EMOJIBASE = Package(
    "emojibase-data",
    (
        Archive(
            "npm",
            "emojibase-data",
            "17.0.0",
            {"package/en/data.json": "", "package/LICENSE": "upstream"},
            "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        ),
    ),
    (Work("emojibase labels", "MIT", "Copyright (c) 2017-2019 Miles Johnson"),),
)
_NOTO = Package(
    "noto",
    (
        Archive(
            "npm",
            "emoji-datasource-google",
            "16.0.0",
            {"package/img/google/64/*.png": "images", "package/LICENSE": "upstream"},
            "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        ),
    ),
    (Work("Noto Emoji", "Apache-2.0", "Copyright Google; packaged by Cal Henderson (emoji-data)"),),
)
_TWEMOJI = Package(
    "twemoji",
    (
        Archive(
            "npm",
            "emoji-datasource-twitter",
            "16.0.0",
            {"package/img/twitter/64/*.png": "images", "package/LICENSE": "upstream"},
            "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        ),
    ),
    (Work("Twemoji", "CC-BY-4.0", "Copyright Twitter, Inc and other contributors; packaged by Cal Henderson"),),
)
_PHOTOS = Package(
    "photos",
    (
        Archive(
            "pip",
            "scikit-image",
            "0.26.0",
            {f"skimage/data/{photo.file}": "images" for photo in SCIKIT_IMAGE},
            files={photo.file: photo.sha256 for photo in SCIKIT_IMAGE},
        ),
        Archive(
            "pip",
            "scikit-learn",
            "1.9.1",
            {f"sklearn/datasets/images/{photo.file}": "images" for photo in SCIKIT_LEARN}
            | {"sklearn/datasets/images/README.txt": "upstream"},
            files={photo.file: photo.sha256 for photo in SCIKIT_LEARN},
        ),
        Archive(
            "apt",
            "lomiri-wallpapers-16.04",
            "20.04.0-2",
            {f"./usr/share/backgrounds/{photo.file}": "images" for photo in LOMIRI}
            | {"./usr/share/doc/lomiri-wallpapers-16.04/copyright": "upstream"},
            "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
            {photo.file: photo.sha256 for photo in LOMIRI},
        ),
        Archive(
            "apt",
            "palapeli-data",
            "4:22.12.3-1",
            {f"./usr/share/palapeli/collection/{photo.file}": "images" for photo in PALAPELI}
            | {f"./usr/share/palapeli/collection/{photo.name}.desktop": "upstream" for photo in PALAPELI},
            "69a15dce2ac25ed8708ac518cd0cee5f4eb0c70ed15da2fdb8899a19ac0ee058",
            {photo.file: photo.sha256 for photo in PALAPELI},
        ),
    ),
    tuple(Work(photo.name, photo.licence, photo.attribution) for photo in PHOTOS),
)

PACKAGES: Mapping[str, Package] = {package.name: package for package in (_FLUENT, _EMOJIBASE, _NOTO, _TWEMOJI, _PHOTOS)}
