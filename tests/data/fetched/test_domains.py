"""Pictures of other domains: splits by source, crops, packages that are missing."""

import os
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image

from channelvq.data.drawn.waves import WaveConfig, WaveSource
from channelvq.data.fetched.catalogue import FREE, LOCAL, PACKAGES
from channelvq.data.fetched.domains import (
    DOMAINS,
    DomainConfig,
    DomainName,
    DomainSource,
    domain_pictures,
    picture_source,
    picture_split,
)
from channelvq.data.fetched.packages import find_package
from channelvq.errors import InputError
from channelvq.files import write_sums

NAMES = {
    "textures": [
        f"{art}/{kind}{i}.jpg" for art in ("base_wall", "clown", "oquartz") for kind in "ab" for i in range(3)
    ],
    "astronomy": [f"{letter}{i}{more}.png" for letter in "mn" for i in range(40) for more in ("", "-wide")],
    "drawings": [f"animal{letter}{more}.png" for letter in "abcdefghijklmnopqrst" for more in ("_01", "_02", "_bw_03")],
    "medical": ["ihc.png", "retina.jpg"],
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of small made-up packages: each picture in a grey of its own."""
    for package, files in NAMES.items():
        folder = tmp_path / PACKAGES[package].folder
        (folder / "images").mkdir(parents=True)
        (folder / "SOURCE.json").write_text("{}")
        for number, file in enumerate(files):
            (folder / "images" / file).parent.mkdir(exist_ok=True)
            Image.new("L", (300, 280), number).save(folder / "images" / file)
        write_sums(folder)
    return tmp_path


@pytest.mark.parametrize("name", get_args(DomainName))
def test_every_picture_is_in_one_split_and_no_source_in_two(name: DomainName, cache: Path) -> None:
    found = {split: domain_pictures(name, split, cache) for split in ("train", "validation", "test")}
    keys = [picture.key for pictures in found.values() for picture in pictures]
    assert len(set(keys)) == len(keys)
    assert sorted(keys) == sorted(key for key in NAMES[DOMAINS[name].package] if picture_source(name, key))
    sources = {split: {picture_source(name, p.key) for p in pictures} for split, pictures in found.items()}
    assert not sources["train"] & sources["test"]
    assert not sources["train"] & sources["validation"]
    assert not sources["validation"] & sources["test"]
    if DOMAINS[name].only_test:
        assert len(keys) == len(found["test"]) == 1
    else:
        assert all(found.values())


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("textures", "base_wall/a1.jpg", "base_trim/b.jpg", True),
        ("textures", "gothic_wall/a.jpg", "base_wall/a.jpg", False),
        ("astronomy", "m34.png", "m34-wide.png", True),
        ("astronomy", "m3.png", "m34.png", False),
        ("drawings", "crawfish1_bw_ganson.png", "crawfish2_ganson.png", True),
        ("drawings", "bus_01.png", "bus_bw_02.png", True),
        ("drawings", "rosa1.png", "rosa2.png", True),
        ("drawings", "rosa1.png", "rose.png", False),
    ],
)
def test_near_copies_share_a_source(name: DomainName, one: str, other: str, same: bool) -> None:
    assert (picture_source(name, one) == picture_source(name, other)) is same
    if same:
        assert picture_split(name, one) == picture_split(name, other)


def test_crops_are_of_the_pictures_of_their_split(cache: Path) -> None:
    source = DomainSource("drawings", size=16, split="test", cache=cache)
    pictures = domain_pictures("drawings", "test", cache)
    assert len(source) == len(pictures)
    for i, picture in enumerate(pictures):
        sample = source.sample(i, generator(i))
        assert sample.key == picture.key
        assert (sample.image == NAMES["drawings"].index(picture.key)).all()
    with pytest.raises(InputError, match="astronomy: no picture of the test split has a side of 290 px"):
        DomainSource("astronomy", split="test", min_side=290, cache=cache)


def test_transparent_pictures_stand_on_white(cache: Path) -> None:
    picture = domain_pictures("drawings", "test", cache)[0]
    Image.new("RGBA", (300, 300), (0, 0, 0, 0)).save(picture.path)
    assert (DomainSource("drawings", size=16, split="test", cache=cache).sample(0, generator()).image == 255).all()


def test_a_missing_package_is_one_error_that_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho no network >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    with pytest.raises(InputError, match=r"'textures': `apt-get download openarena-081-textures=.*apt-get update"):
        DomainConfig(name="textures").build(64, "train")
    with pytest.raises(InputError, match="the domains are textures, astronomy"):
        domain_pictures("satellite", "test")  # type: ignore[arg-type]


def test_bundled_weights_have_no_business_with_these_packages() -> None:
    assert not {package.name for package in FREE} & {package.name for package in LOCAL}
    assert {domain.package for domain in DOMAINS.values()} == {package.name for package in LOCAL}


@pytest.mark.skipif(any(find_package(p.name) is None for p in LOCAL), reason="the packages are not in the cache")
def test_the_real_packages_have_enough_pictures_in_each_split() -> None:
    for name, domain in DOMAINS.items():
        least = {"test": 1} if domain.only_test else {"train": 350, "validation": 35, "test": 100}
        for split, count in least.items():
            assert len(DomainSource(name, split=split).pictures) >= count  # type: ignore[arg-type]


def test_waves_hold_the_frequencies_that_they_promise() -> None:
    source = WaveConfig().build(64, "train")
    assert isinstance(source, WaveSource)
    images = torch.stack([source.sample(i, generator(i)).image for i in range(60)])
    assert torch.equal(images[7], source.sample(3, generator(7)).image)  # the generator decides alone
    grey = images.double().mean(1)
    power = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs().square()
    f = torch.fft.fftfreq(64, 1 / 64, dtype=torch.float64)
    loudest = torch.hypot(*torch.meshgrid(f, f, indexing="ij")).flatten()[power.flatten(1).argmax(1)]
    assert loudest.min() <= 1
    assert 14 < loudest.max() <= 64 / 3 + 1
