from pathlib import Path

import pytest
import torch
from PIL import Image

from channelvq.data.fetched.catalogue import PACKAGES
from channelvq.data.fetched.packages import find_package
from channelvq.data.fetched.photo_list import PHOTOS
from channelvq.data.fetched.photos import PhotoSource
from channelvq.errors import InputError
from channelvq.files import write_sums

SIZES = [(400, 300), (300, 700), (2000, 1000)]
NAMES = [photo.name for photo in PHOTOS]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache whose photographs are grey ramps in red, with the number of the file in green and blue."""
    folder = tmp_path / PACKAGES["photos"].folder
    (folder / "images").mkdir(parents=True)
    (folder / "SOURCE.json").write_text("{}")
    for number, photo in enumerate(PHOTOS):
        width, height = SIZES[number % len(SIZES)]
        ramp = Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90).resize((width, height))
        flat = Image.new("L", (width, height), 8 * number)
        image = Image.merge("RGB", (ramp, flat, flat))
        image.convert("L").save(folder / "images" / photo.file) if number == 0 else image.save(
            folder / "images" / photo.file, quality=100, subsampling=0
        )
    write_sums(folder)
    return tmp_path


def test_splits_hold_every_photograph_once_and_keep_the_test_images_out_of_training() -> None:
    by_split = {
        split: {photo.name for photo in PHOTOS if photo.split == split} for split in ("train", "validation", "test")
    }
    assert sum(map(len, by_split.values())) == len({photo.name for photo in PHOTOS}) == len(PHOTOS)
    assert {"astronaut", "chelsea", "coffee"} < by_split["test"]
    assert len(by_split["test"]) >= 3 + 4
    assert len(by_split["train"]) >= 0.6 * len(PHOTOS)
    assert len(by_split["validation"]) >= 2


def test_crop_i_is_of_photograph_i_modulo_their_number(cache: Path) -> None:
    source = PhotoSource(size=16, split="validation", crops=10, cache=cache)
    assert len(source) == 10
    assert [source.sample(i, generator(i)).key for i in range(4)] == [picture.key for picture in source.pictures] * 2


def test_crops_are_squares_of_at_least_min_side_and_differ(cache: Path) -> None:
    source = PhotoSource(size=16, split="train", min_side=256, flip=False, cache=cache)
    wide = next(i for i, picture in enumerate(source.pictures) if NAMES.index(picture.key) % 3 == 2)
    samples = [source.sample(wide, generator(seed)) for seed in range(40)]
    # The held photograph is 1600 x 800: red runs from 255 on its left to 0 on its right.
    red = torch.stack([sample.image[0].float() for sample in samples])
    extents = (red[:, 8, 0] - red[:, 8, -1]).abs() * (16 / 15) * 1600 / 255
    assert 245 < extents.min() < 400
    assert 600 < extents.max() < 815
    assert red[:, 8, :].mean(dim=1).std() > 20
    assert samples[0].image.shape == (3, 16, 16)
    assert samples[0].image.dtype == torch.uint8


def test_mirroring_is_for_training_only_by_default(cache: Path) -> None:
    def rising(split: str) -> set[bool]:
        source = PhotoSource(size=16, split=split, cache=cache)  # type: ignore[arg-type]
        images = [source.sample(0, generator(seed)).image[0, 8].float() for seed in range(16)]
        return {bool(row[-1] > row[0]) for row in images}

    assert rising("train") == {True, False}
    assert len(rising("validation")) == 1


def test_same_generator_same_crop_in_any_order(cache: Path) -> None:
    one, other = (PhotoSource(size=16, split="test", cache=cache) for _ in range(2))
    other.sample(3, generator(1))
    assert torch.equal(one.sample(1, generator(9)).image, other.sample(1, generator(9)).image)


def test_grey_photographs_become_rgb(cache: Path) -> None:
    source = PhotoSource(size=16, split=PHOTOS[0].split, cache=cache)
    image = source.sample([picture.key for picture in source.pictures].index(NAMES[0]), generator()).image
    assert torch.equal(image[0], image[1])


def test_small_photographs_are_left_out_and_none_left_is_an_error(cache: Path) -> None:
    source = PhotoSource(size=16, split="train", min_side=512, cache=cache)
    assert {NAMES.index(picture.key) % 3 for picture in source.pictures} == {2}
    with pytest.raises(InputError, match="no photograph of the train split has a side of 900"):
        PhotoSource(split="train", min_side=900, cache=cache)
    with pytest.raises(InputError, match="size 64, min_side 32"):
        PhotoSource(min_side=32, cache=cache)


@pytest.mark.skipif(find_package("photos") is None, reason="the photos package is not in the cache")
def test_real_held_out_crops_are_at_least_512_different_images() -> None:
    source = PhotoSource(size=16, split="test", crops=512)
    assert len(source.pictures) >= 7
    crops = {bytes(source.sample(i, generator(i)).image.numpy().tobytes()) for i in range(512)}
    assert len(crops) == 512
