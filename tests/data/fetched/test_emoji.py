import json
from pathlib import Path
from time import process_time

import pytest
import torch
from PIL import Image

from channelvq.data.fetched.catalogue import PACKAGES
from channelvq.data.fetched.emoji import EmojiSource, family, list_sprites, normalise
from channelvq.data.fetched.packages import find_package
from channelvq.data.split import assign_split
from channelvq.errors import InputError
from channelvq.files import write_sums

CAT, WAVE, WAVE_DARK, HASH = "1f408", "1f44b", "1f44b-1f3ff", "0023-fe0f-20e3"
HAS_PACKAGES = all(find_package(name) for name in ("fluent-emoji", "noto", "twemoji", "emojibase-data"))
needs_packages = pytest.mark.skipif(not HAS_PACKAGES, reason="emoji packages are not in the cache")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a fluent package of a few drawn sprites: a red square with a clear margin of a quarter."""
    labels = [
        {"hexcode": "1F408", "label": "cat"},
        {"hexcode": "1F44B", "label": "waving hand",
         "skins": [{"hexcode": "1F44B-1F3FF", "label": "waving hand: dark skin tone"}]},
        {"hexcode": "0023-FE0F-20E3", "label": "keycap: #"},
    ]  # fmt: skip
    for name in ("fluent-emoji", "emojibase-data"):
        folder = tmp_path / PACKAGES[name].folder
        (folder / "images").mkdir(parents=True)
        (folder / "SOURCE.json").write_text("{}")
    (tmp_path / PACKAGES["emojibase-data"].folder / "data.json").write_text(json.dumps(labels))
    sprite = Image.new("RGBA", (128, 128))
    sprite.paste((255, 0, 0, 255), (32, 32, 96, 96))
    for code in (CAT, WAVE, WAVE_DARK, HASH, "23-fe0f-20e3", "1f999-unlabelled"):
        sprite.save(tmp_path / PACKAGES["fluent-emoji"].folder / "images" / f"{code}.webp", lossless=True)
    for name in ("fluent-emoji", "emojibase-data"):
        write_sums(tmp_path / PACKAGES[name].folder)
    return tmp_path


def every_split(cache: Path, **options: object) -> list[EmojiSource]:
    return [EmojiSource(split=split, cache=cache, **options) for split in ("train", "validation", "test")]  # type: ignore[arg-type]


def first(cache: Path, **options: object) -> EmojiSource:
    return next(source for source in every_split(cache, **options) if len(source))


def test_spellings_of_a_hexcode_join() -> None:
    assert normalise("0023-FE0F-20E3") == normalise("23-20e3") == "23-20e3"


def test_family_drops_tone_gender_and_direction_but_not_the_subject() -> None:
    assert family("1f468-1f3fe-200d-1f692") == family("1f469-200d-1f692") == family("1f9d1-200d-1f692")
    assert family("1f3c3-1f3fd-200d-2640-200d-27a1") == family("1f3c3") == "1f3c3"
    assert family("1f468") == "1f468"
    assert family("2640") == "2640"
    assert family("1f9d1-200d-1f692") != family("1f9d1-200d-1f680")


def test_labelled_pictures_once_each_with_and_without_tones(cache: Path) -> None:
    assert [sprite.code for sprite in list_sprites("fluent", cache=cache)] == [CAT, WAVE, normalise(HASH)]
    toned = list_sprites("fluent", cache=cache, skin_tones=True)
    assert [sprite.label for sprite in toned if sprite.base == WAVE] == ["waving hand", "waving hand: dark skin tone"]


def test_every_picture_is_in_the_split_of_its_label(cache: Path) -> None:
    sources = every_split(cache, skin_tones=True)
    assert sum(map(len, sources)) == 4
    for source, split in zip(sources, ("train", "validation", "test"), strict=True):
        assert all(assign_split(family(sprite.base)) == split for sprite in source.sprites)


def test_sample_is_the_sprite_on_the_background_with_its_label(cache: Path) -> None:
    source = first(cache, background=(0, 0, 255), augment=False, size=32)
    sample = source.sample(0, generator())
    assert sample.image.shape == (3, 32, 32)
    assert sample.image.dtype == torch.uint8
    assert (sample.text, sample.key) == (source.sprites[0].label, source.sprites[0].base)
    assert sample.image[:, 16, 16].tolist() == [255, 0, 0]
    assert sample.image[:, 0, 0].tolist() == [0, 0, 255]
    red = (sample.image[0] > 127).float().mean().item()
    assert red == pytest.approx(0.25, abs=0.03)


def test_edges_blend_sprite_and_background_without_a_dark_seam(cache: Path) -> None:
    image = first(cache, background="white", augment=False, size=32).sample(0, generator()).image
    assert image[0].min() >= 250
    assert bool(((image[1] > 20) & (image[1] < 235)).any())


def test_augmentation_scales_and_moves_within_the_frame(cache: Path) -> None:
    source = first(cache, background=(0, 0, 255), augment=True, size=64)
    masks = [source.sample(0, generator(seed)).image[0] > 127 for seed in range(40)]
    areas = [mask.float().mean().item() for mask in masks]
    assert 0.25 * 0.6**2 * 0.9 < min(areas) < 0.14
    assert 0.2 < max(areas) < 0.26
    lefts = {int(mask.any(dim=0).nonzero()[0]) for mask in masks}
    assert len(lefts) > 8


def test_only_the_training_split_is_augmented_by_default(cache: Path) -> None:
    for source, split in zip(every_split(cache), ("train", "validation", "test"), strict=True):
        assert source.augment == (split == "train")


def test_same_generator_same_image_whatever_came_before(cache: Path) -> None:
    once, again = first(cache), first(cache)
    again.sample(0, generator(5))
    assert torch.equal(once.sample(0, generator(7)).image, again.sample(0, generator(7)).image)
    assert not torch.equal(once.sample(0, generator(7)).image, once.sample(0, generator(8)).image)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"style": "apple"}, "'apple' is unknown.*fluent, noto, twemoji"),
        ({"size": 4}, "size 4"),
        ({"background": "blue"}, "'blue'"),
    ],
)
def test_bad_options_are_refused(cache: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        EmojiSource(cache=cache, **options)  # type: ignore[arg-type]


@needs_packages
def test_real_art_sets_share_labels_and_no_family_is_in_two_splits() -> None:
    splits: dict[str, set[str]] = {}
    for style in ("fluent", "noto", "twemoji"):
        for split in ("train", "validation", "test"):
            source = EmojiSource(style, split=split, skin_tones=True)
            assert len(source) > 150
            for sprite in source.sprites:
                splits.setdefault(family(sprite.base), set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert len(list_sprites("fluent")) > 1800


@needs_packages
def test_drawing_a_batch_is_cheap_once_sprites_are_held() -> None:
    source = EmojiSource("fluent", size=64)
    for index in range(32):
        source.sample(index, generator())
    started = process_time()
    for index in range(32):
        source.sample(index, generator())
    # About 6 ms of processor time; the margin is for busy machines.
    assert process_time() - started < 0.1
