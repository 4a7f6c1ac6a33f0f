"""Tar shards read as a source: the same images as their files, whole, in any order, or a refusal that says why."""

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from tests.data.files.tars import assert_same, fill, gen, keys, picture, samples, write_tar
from webdataset.tariterators import group_by_keys, tar_file_iterator

from channelvq.config import from_dict
from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.files.folder import FolderSource
from channelvq.data.files.shard_writer import write_shards
from channelvq.data.files.shards import ShardsConfig, ShardSource
from channelvq.data.options import ImageOptions, SkippedFilesWarning
from channelvq.data.source import Sample
from channelvq.data.split import EmptySplitError, assign_split, split_mask, split_number
from channelvq.data.stream import Mixture, training_batches
from channelvq.errors import InputError
from channelvq.images import load_image, to_tensor

SPLITS = ("train", "validation", "test")
NAMES = ("a.png", "b/x.png", "b/a.b.c.png", "50%.png", "__meta__/y.PNG", "b/x.webp", "café/日本.png", "z.jpg")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CHANNELVQ_CACHE", str(folder))
    return folder


# Round trips


def test_shards_of_a_folder_are_the_folder_to_the_bit(tmp_path: Path) -> None:
    fill(tmp_path / "images", names=NAMES)
    written = write_shards(tmp_path / "images", tmp_path / "out", images_per_shard=3)
    urls = written.urls(tmp_path / "out")
    assert urls == f"{tmp_path}/out/images-{{00000..00002}}.tar"
    options = ImageOptions(crop="random", min_side=9, flip=True)
    shards = samples(ShardSource(urls, 16, "all", options))
    folder = samples(FolderSource(tmp_path / "images", 16, "all", options))
    # Two images of one stem cannot be two samples of an archive: the second is numbered.
    changed = [Sample(s.image, s.text, {"b/x.webp": "b/x~2.webp"}.get(s.key, s.key)) for s in folder]
    assert_same(shards, changed)
    assert [s.text for s in shards].count("") < len(NAMES)


def test_the_splits_of_a_folder_are_those_of_its_shards(tmp_path: Path) -> None:
    fill(tmp_path / "images", 30)
    urls = write_shards(tmp_path / "images", tmp_path / "out", images_per_shard=7).urls(tmp_path / "out")
    options = ImageOptions(validation=0.3, test=0.3)
    for split in SPLITS:
        assert_same(
            samples(ShardSource(urls, 8, split, options)), samples(FolderSource(tmp_path / "images", 8, split, options))
        )


def test_split_mask_is_assign_split() -> None:
    names = [f"{i}.jpg" for i in range(2000)]
    numbers = np.array([split_number(name) for name in names], np.uint64)
    for shares in ((0.05, 0.1), (0.0, 0.0), (0.0, 1.0), (0.5, 0.5)):
        masks = [split_mask(numbers, split, *shares) for split in SPLITS]
        assert np.array_equal(np.sum(masks, axis=0), np.ones(2000))
        assert [SPLITS[i] for i in np.argmax(masks, axis=0)] == [assign_split(name, *shares) for name in names]


def test_webdataset_reads_the_same_bytes_and_captions(tmp_path: Path) -> None:
    fill(tmp_path / "images", 5)
    found = []
    for shard in write_shards(tmp_path / "images", tmp_path / "out", images_per_shard=2).shards:
        with (tmp_path / "out" / shard.name).open("rb") as file:
            members = [member | {"__url__": shard.name} for member in tar_file_iterator(file)]
        found += group_by_keys(members)
    assert [sample["png"] for sample in found] == [(tmp_path / f"images/{i:03d}.png").read_bytes() for i in range(5)]
    assert [sample.get("txt") for sample in found] == [b"picture 0", None, b"picture 2", None, b"picture 4"]


def test_shards_that_webdataset_wrote(tmp_path: Path) -> None:
    pattern = str(tmp_path / "train-%05d.tar")
    with webdataset.ShardWriter(pattern, maxcount=2, verbose=0) as writer:
        for i, kind in enumerate(("jpg", "png", "webp", "jpeg")):
            bytes_ = picture(i, kind={"jpg": "JPEG", "jpeg": "JPEG"}.get(kind, kind))
            caption = {"txt": f"text {i}"} if i % 2 else {"json": {"caption": f"json {i}", "alt": f"alt {i}"}}
            writer.write({"__key__": f"{i:09d}", kind: bytes_, "seg.png": picture(), "cls": 3, **caption})
    source = ShardSource(f"{tmp_path}/train-{{00000..00001}}.tar", 20, "all")
    found = samples(source)
    assert [s.key for s in found] == ["000000000.jpg", "000000001.png", "000000002.webp", "000000003.jpeg"]
    assert [s.text for s in found] == ["json 0", "text 1", "json 2", "text 3"]
    assert torch.equal(found[1].image, to_tensor(load_image(picture(1)))[:, :, 5:25])
    other = ShardSource(f"{tmp_path}/train-{{00000..00001}}.tar", 20, "all", caption_field="alt")
    assert [s.text for s in samples(other)] == ["alt 0", "text 1", "alt 2", "text 3"]
    two = ShardSource(f"{tmp_path}/train-00001.tar::{tmp_path}/train-00000.tar", 20, "all")
    assert keys(two) == ["000000002.webp", "000000003.jpeg", "000000000.jpg", "000000001.png"]


# What is left out


def test_what_cannot_be_used_is_left_out_named_and_counted(tmp_path: Path) -> None:
    members = [
        ("good.png", picture()),
        ("good.json", b'{"caption": null}'),
        ("broken.png", picture()[:300]),
        ("empty.png", b""),
        ("alone.txt", b"a caption without its image"),
        ("two.png", picture()),
        ("two.jpg", picture(kind="JPEG")),
        ("latin.png", picture()),
        ("latin.txt", b"caf\xe9"),
        ("list.png", picture()),
        ("list.json", b"[]"),
        ("number.png", picture()),
        ("number.json", b'{"caption": 5}'),
        ("__header__", b"passed over, as webdataset does"),
        ("._a.png", b"passed over as well"),
        ("bare.png", picture()),
    ]
    shard, empty = write_tar(tmp_path / "s-0.tar", members), write_tar(tmp_path / "s-1.tar", {})
    with pytest.warns(SkippedFilesWarning, match=r"8 of 10 images.* skipped: .*s-0\.tar/alone") as record:
        source = ShardSource(f"{tmp_path}/s-{{0..1}}.tar", 8, "all")
    assert record[0].filename == __file__
    assert keys(source) == ["good.png", "bare.png"]
    reasons = {skipped.path: skipped.reason for skipped in source.skipped}
    for name, part in (
        ("alone", r"no image among its members (txt)"),
        ("two", r"2 images among its members (png, jpg)"),
        ("broken.png", "broken or incomplete"),
        ("empty.png", "it is empty"),
        ("latin.png", "caption cannot be read"),
        ("list.png", "its .json is a list"),
        ("number.png", "its caption 'caption' is 5"),
    ):
        assert part in reasons.pop(shard / name)
    assert reasons == {empty: f"shard {str(empty)!r} holds no image"}


def test_images_without_a_caption_are_left_out_on_demand(tmp_path: Path) -> None:
    members = {"a.png": picture(), "a.txt": b"said", "b.png": picture(), "c.png": picture(), "c.txt": b" \n"}
    shard = write_tar(tmp_path / "s.tar", members)
    assert [s.text for s in samples(ShardSource(str(shard), 8, "all"))] == ["said", "", ""]
    with pytest.warns(SkippedFilesWarning, match=r"2 of 3 images.* skipped: .*b\.png'?: it has no caption"):
        assert keys(ShardSource(str(shard), 8, "all", captioned=True)) == ["a.png"]
    bare = write_tar(tmp_path / "t.tar", {"b.png": picture()})
    with pytest.raises(InputError, match=r"none of 1 images can be read.*no caption"):
        ShardSource(str(bare), 8, "all", captioned=True)


# Shards that are refused


def cut(content: bytes) -> bytes:
    return content[:700]


def cut_between_members(content: bytes) -> bytes:
    return content[: 2 * (512 + -(-len(picture()) // 512) * 512)]


def spoilt_header(content: bytes) -> bytes:
    start = 512 + -(-len(picture()) // 512) * 512
    return content[:start] + b"\xff" * 512 + content[start + 512 :]


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (cut, "broken or cut off"),
        (cut_between_members, "neither a member nor the end mark"),
        (spoilt_header, "neither a member nor the end mark"),
        (lambda content: b"", "broken or cut off"),
        (lambda content: b"no archive " * 100, "broken or cut off"),
        (gzip.compress, "is compressed"),
    ],
)
def test_broken_shards_are_named(tmp_path: Path, damage: Callable[[bytes], bytes], part: str) -> None:
    shard = write_tar(tmp_path / "s-1.tar", {f"{i}.png": picture(i) for i in range(3)})
    write_tar(tmp_path / "s-0.tar", {"x.png": picture()})
    shard.write_bytes(damage(shard.read_bytes()))
    for _ in range(2):  # it is not remembered as one that was read
        with pytest.raises(InputError, match=part) as caught:
            ShardSource(f"{tmp_path}/s-{{0..1}}.tar", 8, "all")
        assert str(shard) in str(caught.value)


def test_shards_that_are_not_there(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-00001.tar", {"x.png": picture()})
    with pytest.raises(InputError, match=r"5 of 6 files are missing: .*0\.tar, .*2\.tar, .*3\.tar and 2 more"):
        ShardSource(f"{tmp_path}/s-{{00000..00005}}.tar", 8)
    (tmp_path / "folder.tar").mkdir()
    for urls, part in (
        (f"{tmp_path}/folder.tar", "1 of 1 files are missing"),
        ("ftp://host/s-{0..3}.tar", "expected http.*copy the shards"),
        ("pipe:cat x.tar", "expected http"),
        ("nope-{000..", r"shards 'nope-{000\.\.': .*expected paths such as"),
        ("a.tar::nope-{0,1", "shards .*expected paths such as"),
        ("~nobody-at-all/s.tar", "shards .*home"),
        ("${NOWHERE}/s.tar", "WDS_NOWHERE|wds_NOWHERE|missing environment variable"),
    ):
        with pytest.raises(InputError, match=part):
            ShardSource(urls, 8)


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", [("x.png", picture()), ("x.png", picture(1))])
    with pytest.raises(InputError, match=r"s\.tar'?: x\.png: duplicate file name"):
        ShardSource(str(shard), 8, "all")


def test_wrong_requests(tmp_path: Path) -> None:
    shard = str(write_tar(tmp_path / "s.tar", {"a.png": picture()}))  # hashed to train
    for options in ({"split": "val"}, {"size": 0}):
        with pytest.raises(InputError, match=f"{next(iter(options))}="):
            ShardSource(**{"urls": shard, "size": 8, "split": "all", **options})
    source = ShardSource(shard, 8, "all")
    for index in (-1, 1):
        with pytest.raises(InputError, match=f"sample {index} of a source with 1"):
            source.sample(index, gen())
    with pytest.raises(EmptySplitError, match=r"no image in split 'test' \(1 in train, 0 in validation, 0 in test\)"):
        ShardSource(shard, 8, "test")


# The index


def test_a_source_goes_to_another_process(tmp_path: Path) -> None:
    fill(tmp_path / "images", 4)
    urls = write_shards(tmp_path / "images", tmp_path / "out", images_per_shard=3).urls(tmp_path / "out")
    source = ShardSource(urls, 8, "all")
    assert_same(samples(pickle.loads(pickle.dumps(source))), samples(source))


# The stream


def stream(tmp_path: Path, count: int, images_per_shard: int) -> Mixture:
    fill(tmp_path / "images", count)
    urls = write_shards(tmp_path / "images", tmp_path / "out", images_per_shard=images_per_shard).urls(tmp_path / "out")
    return Mixture({"mine": ShardSource(urls, 8, "all", ImageOptions(crop="random", min_side=9))}, {"mine": 1.0}, 3)


def test_ranks_and_workers_share_shards_without_an_image_twice(tmp_path: Path) -> None:
    mixture = stream(tmp_path, 24, 24)  # one shard for two ranks of two workers
    whole = list(training_batches(mixture, 8, 0, 3))
    assert len({image.numpy().tobytes() for batch in whole for image in batch}) == 24
    shares = [list(training_batches(mixture, 8, 0, 3, rank=rank, world=2, workers=2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([first, second]), batch)
    read = [[mixture.locate(p)[1] for p in range(24) if p % 8 // 4 == rank] for rank in (0, 1)]
    assert not set(read[0]) & set(read[1])
    assert sorted(read[0] + read[1]) == list(range(24))
    later = list(training_batches(mixture, 8, 2, 3, workers=2))
    assert torch.equal(later[0], whole[2])


def test_a_set_smaller_than_the_batch_ends(tmp_path: Path) -> None:
    mixture = stream(tmp_path, 3, 2)
    batches = list(training_batches(mixture, 8, 0, 2, workers=2))
    assert [len(batch) for batch in batches] == [8, 8]
    places = [mixture.locate(p)[1] for p in range(15)]
    assert all(sorted(places[i : i + 3]) == [0, 1, 2] for i in range(0, 15, 3))


# Recipes


def test_recipe_options_reach_the_source(tmp_path: Path) -> None:
    shard = write_tar(
        tmp_path / "s.tar",
        [m for i in range(40) for m in ((f"{i}.png", picture(i)), (f"{i}.json", json.dumps({"alt": f"{i}"}).encode()))],
    )
    options: dict[str, Any] = {"crop": "random", "min_side": 9, "flip": True, "validation": 0.3, "test": 0.3}
    config = from_dict(ShardsConfig, {"urls": str(shard), "caption_field": "alt", "captioned": True, **options})
    expected = ShardSource(str(shard), 8, "validation", ImageOptions(**options), caption_field="alt", captioned=True)
    found = samples(config.build(8, "validation"))
    assert_same(found, samples(expected))
    assert 0 < len(found) < 40
    assert all(sample.text == Path(sample.key).stem for sample in found)


def test_a_split_may_have_shards_of_its_own(tmp_path: Path) -> None:
    shards = {name: write_tar(tmp_path / f"{name}.tar", {f"{name}{i}.png": picture(i) for i in range(20)})
              for name in ("train", "validation")}  # fmt: skip
    config = ShardsConfig(urls=str(shards["train"]), validation_urls=str(shards["validation"]), test=0.3)
    found = {split: keys(config.build(8, split)) for split in SPLITS}
    assert found["validation"] == [f"validation{i}.png" for i in range(20)]
    assert sorted(found["train"] + found["test"]) == sorted(f"train{i}.png" for i in range(20))
    assert found["test"] == [f"train{i}.png" for i in range(20) if assign_split(f"train{i}.png", 0, 0.3) == "test"]


def test_an_empty_split_names_the_keys_of_the_recipe(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", {"a.png": picture()})
    config = DataConfig(sources={"mine": ShardsConfig(urls=str(shard))})
    with pytest.raises(InputError, match=r"1 in train, 0 in validation.*data\.sources\.mine\.validation=0\.2"):
        build_mixture(config, 8, "validation", 0)
