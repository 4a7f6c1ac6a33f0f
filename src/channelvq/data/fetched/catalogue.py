"""Which data packages exist: archives with exact versions and hashes, the files taken from them, their licences."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from channelvq.data.fetched.photo_list import PHOTOS, Photo

# Of OpenArena's art sets those of surfaces: no skies, lights, signs and effects.
TEXTURE_SETS = (
    "acc_dm3", "acc_dm5", "base_door", "base_floor", "base_support", "base_trim", "base_wall", "base_wall2", "clown",
    "cosmo_block", "cosmo_floor", "cosmo_green", "cosmo_trim", "cosmo_wall", "e7", "evil1_floors", "evil1_metals",
    "evil1_walls", "evil4_walls", "evil6_floors", "evil8_base", "evil8_floor", "evil8_wall", "gothic_block",
    "gothic_cath", "gothic_ceiling", "gothic_door", "gothic_floor", "gothic_trim", "gothic_wall", "ice",
    "mc-oa-dm02", "mc-oa-dm04", "oa_bases", "oquartz", "organics", "proto2", "pulchr_simple", "skin", "stone",
)  # fmt: skip
DRAWING_SUBJECTS = (
    "animals", "buildings", "food", "people", "plants", "recreation/sports", "tools", "transportation/boating",
)  # fmt: skip


@dataclass(frozen=True)
class Archive:
    """One file of a package registry.

    wanted: pattern of member names -> folder of the package they go to ("" is its top); only matching files are taken.
    A file of a zip archive within is named "its member!name".
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


def _photos(
    client: Literal["apt", "pip"], name: str, version: str, folder: str, texts: Mapping[str, str], sha256: str = ""
) -> Archive:
    """An archive of listed photographs. texts: files that say more of them, each to a folder of the package."""
    wanted = {f"{folder}/{photo.file}": "images" for photo in _listed(name)} | dict(texts)
    return Archive(client, name, version, wanted, sha256, {photo.file: photo.sha256 for photo in _listed(name)})


def _listed(archive: str) -> list[Photo]:
    return [photo for photo in PHOTOS if photo.archive == archive]


_PALAPELI = "./usr/share/palapeli/collection"
_PK3 = "./usr/share/games/openarena/baseoa/pak4-textures.pk3"
_LICENCE = {"package/LICENSE": "upstream"}

# What bundled weights may be trained on.
FREE = (
    Package("fluent-emoji", (
        Archive("npm", "@lobehub/fluent-emoji-3d", "1.1.0", {"package/assets/*.webp": "images"},
                "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
    ), (
        Work("Fluent Emoji 3D", "MIT", "Copyright (c) Microsoft Corporation; packaged by LobeHub, copyright (c) 2023"),
    )),
    Package("emojibase-data", (
        Archive("npm", "emojibase-data", "17.0.0", {"package/en/data.json": "", **_LICENCE},
                "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
    ), (
        Work("emojibase labels", "MIT", "Copyright (c) 2017-2019 Miles Johnson"),
    )),
    Package("noto", (
        Archive("npm", "emoji-datasource-google", "16.0.0", {"package/img/google/64/*.png": "images", **_LICENCE},
                "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"),
    ), (
        Work("Noto Emoji", "Apache-2.0", "Copyright Google; packaged by Cal Henderson (emoji-data)"),
    )),
    Package("twemoji", (
        Archive("npm", "emoji-datasource-twitter", "16.0.0", {"package/img/twitter/64/*.png": "images", **_LICENCE},
                "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"),
    ), (
        Work("Twemoji", "CC-BY-4.0", "Copyright Twitter, Inc and other contributors; packaged by Cal Henderson"),
    )),
    Package("photos", (
        _photos("pip", "scikit-image", "0.26.0", "skimage/data", {}),
        _photos("pip", "scikit-learn", "1.9.1", "sklearn/datasets/images",
                {"sklearn/datasets/images/README.txt": "upstream"}),
        _photos("apt", "lomiri-wallpapers-16.04", "20.04.0-2", "./usr/share/backgrounds",
                {"./usr/share/doc/lomiri-wallpapers-16.04/copyright": "upstream"},
                "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab"),
        _photos("apt", "palapeli-data", "4:22.12.3-1", _PALAPELI,
                {f"{_PALAPELI}/{photo.name}.desktop": "upstream" for photo in _listed("palapeli-data")},
                "69a15dce2ac25ed8708ac518cd0cee5f4eb0c70ed15da2fdb8899a19ac0ee058"),
    ), tuple(Work(photo.name, photo.licence, photo.attribution) for photo in PHOTOS)),
)  # fmt: skip
# What weights of its own may be trained on: the bundled clothes.
CLOTHES = Package("fashion-mnist", (
    Archive("apt", "dataset-fashion-mnist", "0.0~git20200523.55506a9-1",
            {"./usr/share/datasets/fashion-mnist/*.gz": "",
             "./usr/share/doc/dataset-fashion-mnist/copyright": "upstream"},
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"),
), (
    Work("Fashion-MNIST", "MIT", "Copyright (c) 2017 Zalando SE"),
))  # fmt: skip
# Emoji that move, in four archives of about 180 MB, each of other labels: the first is enough to begin with.
_ANIMATED = Work(
    "Fluent Emoji, animated", "MIT", "Copyright (c) Microsoft Corporation; packaged by LobeHub, copyright (c) 2023"
)
_ANIMATED_SHA256 = (
    "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
    "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
    "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
    "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
)
ANIMATED = tuple(
    Package("fluent-animated" if number == 1 else f"fluent-animated-{number}", (
        Archive("npm", f"@lobehub/fluent-emoji-anim-{number}", "1.0.0", {"package/assets/*.webp": "images"}, sha256),
    ), (_ANIMATED,))
    for number, sha256 in enumerate(_ANIMATED_SHA256, start=1)
)  # fmt: skip
# What is for measuring on this machine alone (data/fetched/domains.py).
LOCAL = (
    Package("textures", (
        Archive("apt", "openarena-081-textures", "0.8.5split-14",
                {f"{_PK3}!textures/{art_set}/*.jpg": f"images/{art_set}" for art_set in TEXTURE_SETS}
                | {"./usr/share/doc/openarena-081-textures/copyright": "upstream"},
                "72bf05abd5286a1523b56ca04e25bceb775813d747f92ecd20749d512361a81f"),
    ), (
        Work("OpenArena textures", "GPL-2.0-or-later", "OpenArena team and others, named in upstream/copyright"),
    )),
    Package("astronomy", (
        Archive("apt", "stellarium-data", "0.22.2-1",
                {"./usr/share/stellarium/nebulae/default/*.png": "images",
                 "./usr/share/stellarium/nebulae/default/textures.json": "upstream",
                 "./usr/share/doc/stellarium-data/copyright": "upstream"},
                "45aaebf39a814acbd6dcccea058c2f5651bcb5635599da03a215feeb51f4d5a5"),
    ), (
        Work("Stellarium nebulae", "GPL-2.0-or-later", "Stellarium's authors and the observers whom upstream/ names"),
    )),
    Package("drawings", (
        Archive("apt", "openclipart-png", "1:0.18+dfsg-19",
                {f"./usr/share/openclipart/png/{subject}/*.png": "images" for subject in DRAWING_SUBJECTS}
                | {"./usr/share/doc/openclipart-png/copyright": "upstream"},
                "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02"),
    ), (
        Work("Open Clip Art Library", "public-domain", "its artists, named in most file names"),
    )),
    Package("medical", (
        Archive("pip", "scikit-image", "0.26.0",
                {"skimage/data/ihc.png": "images", "skimage/data/retina.jpg": "images"},
                files={"ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
                       "retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6"}),
    ), (
        Work("ihc", "public-domain", "Immunohistochemical stain, Center for Microscopy And Molecular Imaging (CMMI)"),
        Work("retina (medical)", "CC0-1.0", "Fundus of a left eye, Mikael Häggström"),
    )),
)  # fmt: skip
PACKAGES: Mapping[str, Package] = {package.name: package for package in (*FREE, CLOTHES, *ANIMATED, *LOCAL)}
