"""Clips as a source: emoji by label, folders of one's own, and what of a sample is drawn."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from channelvq.config import from_dict
from channelvq.data import clips
from channelvq.data.build import AnySourceConfig, DataConfig, build_mixture
from channelvq.data.clips import ClipsConfig, ClipSource, emoji_entries, folder_clips
from channelvq.data.fetched.catalogue import PACKAGES
from channelvq.data.fetched.emoji import family
from channelvq.data.options import SkippedFilesWarning
from channelvq.data.split import assign_split
from channelvq.data.stream import fixed_images
from channelvq.errors import InputError
from channelvq.files import write_sums

BLUE, RED = (0, 0, 255), (255, 0, 0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moving(path: Path, *, clear: bool, frames: int = 6) -> None:
    """A square that goes from left to right."""
    pictures = []
    for step in range(frames):
        picture = Image.new("RGBA", (48, 48), (*BLUE, 0 if clear else 255))
        picture.paste((*RED, 255), (6 * step, 16, 6 * step + 16, 32))
        pictures.append(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50, lossless=True)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with two packs of animated emoji, a still among them."""
    labels = [
        {"hexcode": "1F408", "label": "cat"},
        {"hexcode": "1F44B", "label": "waving hand", "skins": [{"hexcode": "1F44B-1F3FF", "label": "dark"}]},
        {"hexcode": "1F3C3", "label": "person running"},
        {"hexcode": "1F3C3-200D-2640-FE0F", "label": "woman running"},
    ]
    packs = {"emojibase-data": (), "fluent-animated": ("1f408", "1f44b-1f3ff", "1f3c3"),
             "fluent-animated-2": ("1f44b", "1f3c3-200d-2640-fe0f", "1f999-unlabelled")}  # fmt: skip
    for name, codes in packs.items():
        folder = tmp_path / PACKAGES[name].folder
        (folder / "images").mkdir(parents=True)
        (folder / "SOURCE.json").write_text("{}")
        for code in codes:
            moving(folder / "images" / f"{code}.webp", clear=True)
    Image.new("RGBA", (48, 48)).save(tmp_path / PACKAGES["fluent-animated"].folder / "images/1f44b.webp")
    (tmp_path / PACKAGES["emojibase-data"].folder / "data.json").write_text(json.dumps(labels))
    for name in packs:
        write_sums(tmp_path / PACKAGES[name].folder)
    return tmp_path


def test_labelled_emoji_that_move_without_tones(cache: Path) -> None:
    assert [(entry.key, entry.text) for entry in emoji_entries(1, cache=cache)] == [
        ("1f3c3", "person running"), ("1f408", "cat")]  # fmt: skip
    both = emoji_entries(2, cache=cache)
    assert [entry.text for entry in both] == ["person running", "woman running", "cat", "waving hand"]
    assert all(entry.split == assign_split(family(entry.key)) for entry in both)
    assert len({entry.split for entry in both if "running" in entry.caption()}) == 1


def test_the_registered_kind_reads_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(cache))
    config = from_dict(DataConfig, {"sources": {"a": {"kind": "clips", "packs": 2, "test": 0, "validation": 0}}})
    mixture = build_mixture(config, 16, "train", seed=0)
    assert fixed_images(mixture, 3).shape == (3, 9, 3, 16, 16)
    with pytest.raises(InputError, match="less than or equal to 4"):
        from_dict(AnySourceConfig, {"kind": "clips", "packs": 5})  # type: ignore[arg-type]


def source(tmp_path: Path, *, clear: bool = False, augment: bool = False, size: int = 48) -> ClipSource:
    moving(tmp_path / "mine/a.webp", clear=clear)
    return ClipSource(folder_clips(tmp_path / "mine"), size, 6, augment=augment)


def test_frames_in_time_on_one_background(tmp_path: Path) -> None:
    image = source(tmp_path, clear=True).sample(0, generator()).image
    assert (image.shape, image.dtype) == ((6, 3, 48, 48), torch.uint8)
    for step, frame in enumerate(image):
        assert frame[:, 24, 6 * step + 8].tolist() == list(RED)
    assert (image[:, :, 2] == image[0, :, 2]).all()  # where nothing is drawn: the background, in every frame the same
    other = source(tmp_path, clear=True).sample(0, generator(1)).image
    assert not torch.equal(other[:, :, 2], image[:, :, 2])


def test_stills_are_the_frames_each_drawn_as_often(tmp_path: Path) -> None:
    moving(tmp_path / "mine/a.webp", clear=False)
    entries = folder_clips(tmp_path / "mine")
    clip = ClipSource(entries, 48, 6).sample(0, generator()).image
    stills = ClipSource(entries, 48, 6, stills=True)
    seen = [next(i for i in range(6) if torch.equal(clip[i], stills.sample(0, generator(s)).image)) for s in range(60)]
    assert set(seen) == set(range(6))


def test_what_is_clear_is_scaled_and_moved_alike_in_all_frames_and_what_is_not_is_left(tmp_path: Path) -> None:
    plain = source(tmp_path, clear=True, augment=True)
    places = set()
    for seed in range(12):
        image = plain.sample(0, generator(seed)).image.int()
        moved = (image - image[:1]).abs().sum(dim=(0, 1)).nonzero()
        places.add((int(moved[:, 0].min()), int(moved[:, 0].max())))
    assert len(places) > 4
    opaque = source(tmp_path / "b", clear=False, augment=True)
    assert torch.equal(opaque.sample(0, generator()).image, opaque.sample(0, generator(1)).image)


def test_a_sample_is_the_same_whatever_came_before_and_however_much_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = source(tmp_path, clear=True)
    first = once.sample(0, generator(3)).image
    once.sample(0, generator(4))
    assert torch.equal(once.sample(0, generator(3)).image, first)
    monkeypatch.setattr(clips, "MOST_HELD", 0)
    unheld = source(tmp_path, clear=True)
    assert torch.equal(unheld.sample(0, generator(3)).image, first)
    assert unheld._held == {}


def test_a_folder_with_captions_shares_and_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name in "abcdef":
        moving(tmp_path / f"mine/{name}.gif", clear=False)
    (tmp_path / "mine/a.txt").write_text("a red square\n")
    (tmp_path / "mine/z.webp").write_bytes(b"broken")
    (tmp_path / "mine/.hidden.gif").write_bytes(b"")
    config = ClipsConfig(root=str(tmp_path / "mine"), validation=0.0, test=0.0, frames=4)
    with pytest.warns(SkippedFilesWarning, match=r"1 of 7 clips are left out; the first: .*z\.webp"):
        there = config.build(16, "train")
    assert (len(there), len(there.skipped)) == (6, 1)
    sample = there.sample(0, generator())
    assert (sample.key, sample.text, sample.image.shape) == ("a.gif", "a red square", (4, 3, 16, 16))
    assert there.seconds(0) == pytest.approx(0.3)
    before = there.stamp()
    (tmp_path / "mine/a.txt").write_text("a square\n")
    assert there.stamp() != before


@pytest.mark.parametrize(
    ("root", "message"), [("nowhere", "no such folder"), ("a.txt", "it is a file"), ("empty", "no animation or video")]
)
def test_folders_without_clips_are_named(root: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match=f"clip folder .*{message}"):
        folder_clips(tmp_path / root)


def test_an_empty_split_tells_the_setting(tmp_path: Path) -> None:
    moving(tmp_path / "mine/a.webp", clear=False)
    config = from_dict(DataConfig, {"sources": {"mine": {"kind": "clips", "root": str(tmp_path / "mine"), "test": 0}}})
    with pytest.raises(InputError, match=r"none of 1 clips is in the test split.*data\.sources\.mine\.test=0\.2"):
        build_mixture(config, 16, "test", 0)
