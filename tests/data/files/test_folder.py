import json
import pickle
import re
import shutil
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from channelvq.config import from_dict
from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.files import checked
from channelvq.data.files.folder import FolderConfig, FolderSource, ManifestConfig, ManifestSource
from channelvq.data.options import ImageOptions, SkippedFilesWarning
from channelvq.data.split import EmptySplitError, assign_split
from channelvq.errors import InputError
from channelvq.files import recall
from channelvq.images import load_image, random_crop, to_tensor

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CHANNELVQ_CACHE", str(folder))
    return folder


def png(seed=0, height=20, width=30):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root, names):
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(seed))
    return root


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def keys(source):
    return [source.sample(i, gen()).key for i in range(len(source))]


# Splits


def test_split_follows_the_documented_number():
    # sha256("a") starts with ca97..., sha256("b") with 3e23..., sha256("c") with 2e7d...: 0.791, 0.243, 0.182
    assert [assign_split(key, validation=0.1, test=0.2) for key in "abc"] == ["train", "validation", "test"]
    assert assign_split("a", validation=0, test=0.79) == "train"
    assert assign_split("a", validation=0, test=0.80) == "test"


def test_split_shares():
    names = [assign_split(f"photo/{i}.jpg") for i in range(20_000)]
    assert abs(names.count("test") / 20_000 - 0.10) < 0.01
    assert abs(names.count("validation") / 20_000 - 0.05) < 0.01


@given(st.text(st.characters()), st.floats(0, 0.4), st.floats(0, 0.4))
def test_split_test_share_does_not_depend_on_validation(key, validation, test):
    assert (assign_split(key, validation, test) == "test") == (assign_split(key, 0, test) == "test")
    assert assign_split(key, 0, 0) == "train"
    assert assign_split(key, 0, 1) == "test"


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.1, -0.1), (0.6, 0.5), (float("nan"), 0)])
def test_split_fractions_are_checked(validation, test):
    with pytest.raises(InputError, match="split fractions"):
        assign_split("a", validation, test)


# Folders


def test_folder_sample_is_the_centre_crop_with_its_text(tmp_path):
    fill(tmp_path, ["b/x.png", "a.png"])
    (tmp_path / "b/x.txt").write_text("\ufeffa caf\u00e9 \n", encoding="utf-8")
    source = FolderSource(tmp_path, 20, "all")
    assert keys(source) == ["a.png", "b/x.png"]
    first, second = (source.sample(i, gen()) for i in (0, 1))
    assert (first.text, second.text) == ("", "a caf\u00e9")
    assert second.image.dtype == torch.uint8
    assert torch.equal(second.image, to_tensor(load_image(tmp_path / "b/x.png"))[:, :, 5:25])


def test_splits_partition_the_folder_and_never_depend_on_position(tmp_path):
    names = [f"{i:02d}.png" for i in range(40)]
    fill(tmp_path, names)
    fractions: dict[str, Any] = {"validation": 0.3, "test": 0.3}
    parts = {split: keys(FolderSource(tmp_path, 4, split, ImageOptions(**fractions))) for split in SPLITS}
    assert sorted(key for part in parts.values() for key in part) == names
    assert all(assign_split(key, **fractions) == split for split, part in parts.items() for key in part)
    for name in names[::2]:
        (tmp_path / name).unlink()
    moved = tmp_path.with_name("moved")
    shutil.move(tmp_path, moved)
    for split in SPLITS:
        assert keys(FolderSource(moved, 4, split, ImageOptions(**fractions))) == [
            k for k in parts[split] if k in names[1::2]
        ]


def test_random_crop_and_flip_are_drawn_from_the_generator(tmp_path):
    fill(tmp_path, ["a.png"])
    image = load_image(tmp_path / "a.png")
    source = FolderSource(tmp_path, 8, "all", ImageOptions(crop="random", min_side=9))
    for seed in range(3):
        expected = to_tensor(random_crop(image, 8, 9, gen(seed)))
        assert torch.equal(source.sample(0, gen(seed)).image, expected)
    flipping = FolderSource(tmp_path, 20, "all", ImageOptions(flip=True))
    plain = FolderSource(tmp_path, 20, "all").sample(0, gen()).image
    seen = [flipping.sample(0, gen(seed)).image for seed in range(20)]
    mirrored = [torch.equal(x, plain.flip(-1)) for x in seen]
    assert all(m or torch.equal(x, plain) for m, x in zip(mirrored, seen, strict=True))
    assert 3 < sum(mirrored) < 17
    assert torch.equal(flipping.sample(0, gen(5)).image, seen[5])


def test_unreadable_files_are_found_when_the_source_is_made(tmp_path):
    fill(tmp_path, ["a.png", "c.png"])
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.warns(SkippedFilesWarning, match=r"1 of 3 images skipped: .*b\.png.*it is empty") as record:
        source = FolderSource(tmp_path, 8, "all")
    assert record[0].filename == __file__
    assert keys(source) == ["a.png", "c.png"]
    assert [s.path.name for s in source.skipped] == ["b.png"]


def test_the_first_five_that_are_skipped_are_named_and_the_split(tmp_path):
    fill(tmp_path, [f"{i}.png" for i in range(20)])
    for i in range(20, 60):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.warns(SkippedFilesWarning) as record:
        source = FolderSource(tmp_path, 8, "train", ImageOptions(validation=0.3, test=0.3))
    skipped = [entry.path.name for entry in source.skipped]
    assert len(skipped) > 6  # or the sentence is another one
    said = str(record[0].message)
    assert f": {len(skipped)} of {len(source) + len(skipped)} images of the training split skipped: " in said
    assert re.findall(r"image file '[^']+/([^'/]+)'", said) == skipped[:5]
    assert said.endswith(f"; and {len(skipped) - 5} more")


def test_a_truncated_file_is_found_when_the_source_is_made(tmp_path):
    fill(tmp_path, ["a.png"])
    (tmp_path / "half.png").write_bytes(png()[:900])
    for _ in range(2):  # a bad file is not remembered as one that was checked
        with pytest.warns(SkippedFilesWarning, match=r"1 of 2 images skipped: .*half\.png.*broken or incomplete"):
            source = FolderSource(tmp_path, 8, "all")
        assert keys(source) == ["a.png"]
        assert source.skipped[0].path == tmp_path / "half.png"
    (tmp_path / "half.png").write_bytes(png(5))
    assert keys(FolderSource(tmp_path, 8, "all")) == ["a.png", "half.png"]


def test_a_file_that_breaks_later_is_named(tmp_path):
    fill(tmp_path, ["half.png"])
    source = FolderSource(tmp_path, 8, "all")
    (tmp_path / "half.png").write_bytes(png()[:900])
    with pytest.raises(InputError, match=r"half\.png.*broken or incomplete"):
        source.sample(0, gen())


def test_a_file_is_decoded_once_until_it_changes(tmp_path, cache, monkeypatch):
    fill(tmp_path, ["a.png", "b.png"])
    decoded = []
    monkeypatch.setattr(checked, "load_image", lambda path: (decoded.append(path.name), load_image(path)))
    FolderSource(tmp_path, 8, "all")
    FolderSource(tmp_path, 8, "all")
    assert sorted(decoded) == ["a.png", "b.png"]
    (tmp_path / "b.png").write_bytes(png(7, height=21))
    FolderSource(tmp_path, 8, "all")
    assert decoded[2:] == ["b.png"]
    (memory,) = (cache / "checked").iterdir()
    for broken in ("{", "[]", '{"pillow": 1, "files": {}}', '{"files": 3}', "[" * 100_000):
        memory.write_text(broken)
        assert len(FolderSource(tmp_path, 8, "all")) == 2
        assert recall(memory)["files"].keys() == {str(tmp_path / n) for n in ("a.png", "b.png")}
    assert len(decoded) == 3 + 5 * 2


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    fill(tmp_path / "images", ["a.png"])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "file" / "below"))
    assert keys(FolderSource(tmp_path / "images", 8, "all")) == ["a.png"]


def test_an_animation_is_an_image(tmp_path):
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in (0, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert len(FolderSource(tmp_path, 8, "all")) == 1  # without a warning


# Recipes


def test_recipe_options_reach_the_source(tmp_path):
    fill(tmp_path, [f"{i:02d}.png" for i in range(40)])
    options: dict[str, Any] = {"crop": "random", "min_side": 9, "flip": True, "validation": 0.3, "test": 0.3}
    (tmp_path / "m.csv").write_text("image\n" + "".join(f"{i:02d}.png\n" for i in range(40)))
    configs = [
        from_dict(FolderConfig, {"root": str(tmp_path), **options}),
        from_dict(ManifestConfig, {"path": str(tmp_path / "m.csv"), **options}),
    ]
    expected = FolderSource(tmp_path, 8, "validation", ImageOptions(**options))
    for config in configs:
        source = config.build(8, "validation")
        assert keys(source) == keys(expected)
        assert torch.equal(source.sample(1, gen(3)).image, expected.sample(1, gen(3)).image)


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"validation": 1.5}, "validation"),
        ({"test": -0.1}, "test"),
        ({"validation": 0.6, "test": 0.6}, "together"),
        ({"crop": "left"}, "crop"),
        ({"min_side": 0}, "min_side"),
    ],
)
def test_recipe_options_have_bounds(setting, part):
    for cls, place in ((FolderConfig, {"root": "x"}), (ManifestConfig, {"path": "x"})):
        with pytest.raises(InputError, match=part):
            from_dict(cls, {**place, **setting})


def test_an_empty_split_names_the_keys_of_the_recipe(tmp_path):
    fill(tmp_path, ["a.png"])  # hashed to 0.79: train
    config = DataConfig(sources={"mine": FolderConfig(root=str(tmp_path))})
    assert len(build_mixture(config, 8, "train", 0).sources[0]) == 1
    with pytest.raises(InputError, match=r"1 in train, 0 in validation.*data\.sources\.mine\.validation=0\.2"):
        build_mixture(config, 8, "validation", 0)
    config = DataConfig(sources={"mine": FolderConfig(root=str(tmp_path), validation=0.5, test=0.5)})
    with pytest.raises(InputError, match=r"lower data\.sources\.mine\.validation"):
        build_mixture(config, 8, "train", 0)
    with pytest.raises(EmptySplitError, match="give larger fractions validation=") as caught:
        FolderSource(tmp_path, 8, "validation")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# Sources without a sample


def test_folders_without_a_sample(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="no image file in it or below"):
        FolderSource(tmp_path, 8)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of 1 images can be read"):
        FolderSource(tmp_path, 8, "all")
    fill(tmp_path, ["a.png"])
    with pytest.raises(InputError, match=r"no image in split 'test' \(1 in train, 0 in validation, 0 in test\)"):
        FolderSource(tmp_path, 8, "test", ImageOptions(validation=0, test=0))


def test_wrong_options_and_texts(tmp_path):
    fill(tmp_path, ["a.png"])
    for options in ({"split": "val"}, {"size": 0}):
        with pytest.raises(InputError, match=f"{next(iter(options))}="):
            FolderSource(**{"root": tmp_path, "size": 8, "split": "all", **options})
    source = FolderSource(tmp_path, 8, "all")
    for index in (-1, 1):
        with pytest.raises(InputError, match=f"sample {index} of a source with 1"):
            source.sample(index, gen())
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"a\.txt.*not UTF-8"):
        source.sample(0, gen())


# Manifests


@pytest.fixture
def photos(tmp_path):
    return fill(tmp_path, ["p/a.png", "p/b.png", "p/c.png"])


def write_jsonl(folder, *rows):
    path = folder / "list.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_jsonl_and_csv_agree(photos):
    rows = [
        {"image": "p/c.png", "text": "sea, \u2028 sky", "split": "train"},
        {"image": "p/a.png", "text": "a", "split": "test"},
        {"image": "p/b.png", "text": "", "split": "train"},
    ]
    jsonl = write_jsonl(photos, *rows)
    table = photos / "list.csv"
    body = "".join(f'{row["image"]},"{row["text"]}",{row["split"]}\r\n' for row in rows)
    table.write_text("\ufeffimage,text,split\r\n" + body, encoding="utf-8", newline="")
    for path in (jsonl, table):
        source = ManifestSource(path, 8)
        samples = [source.sample(i, gen()) for i in range(len(source))]
        assert [(s.key, s.text) for s in samples] == [("p/c.png", "sea, \u2028 sky"), ("p/b.png", "")]
        assert keys(ManifestSource(path, 8, "test")) == ["p/a.png"]
        with pytest.raises(InputError, match="no image in split 'validation'"):
            ManifestSource(path, 8, "validation")


def test_manifest_without_text_and_split(photos):
    (photos / "p/a.txt").write_text("beside")
    path = write_jsonl(photos, *({"image": f"p/{n}.png"} for n in "abc"))
    source = ManifestSource(path, 8, "all")
    assert [source.sample(i, gen()).text for i in range(3)] == ["beside", "", ""]
    fractions: dict[str, Any] = {"validation": 0, "test": 0.7}
    expected = [f"p/{n}.png" for n in "abc" if assign_split(f"p/{n}.png", **fractions) == "test"]
    assert 0 < len(expected) < 3
    assert keys(ManifestSource(path, 8, "test", ImageOptions(**fractions))) == expected


def test_manifest_with_a_missing_image(photos):
    path = write_jsonl(photos, {"image": "p/a.png"}, {"image": "gone.png"})
    with pytest.warns(SkippedFilesWarning, match=r"gone\.png': no such file"):
        assert keys(ManifestSource(path, 8, "all")) == ["p/a.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", '{"image": "p/a.png"}\n\n{"image": 3}', "line 3: expected a field 'image'"),
        ("m.jsonl", '{"image": "p/a.png"}\n{broken', "line 2: not JSON"),
        ("m.jsonl", '["p/a.png"]', "line 1: expected a field 'image'"),
        ("m.jsonl", '{"image": "p/a.png", "text": 5}', "line 1: field 'text' is 5"),
        ("m.jsonl", '{"image": "p/a.png", "split": "val"}', "line 1: field 'split' is 'val'"),
        ("m.jsonl", "\n", "it lists no image"),
        ("m.csv", "file\np/a.png\n", "line 2: expected a field 'image'"),
        ("m.csv", "image,text\np/a.png,a cat, sitting\n", "line 2: more fields than the header"),
        ("m.csv", 'image,text\np/a.png,"open\n', "line 2: unexpected end"),
        ("m.tsv", "image\n", "expected a .jsonl or .csv"),
    ],
)
def test_wrong_manifests_are_refused_with_their_line(photos, name, content, message):
    (photos / name).write_text(content)
    with pytest.raises(InputError, match=message):
        ManifestSource(photos / name, 8, "all")


def test_missing_manifest(tmp_path):
    with pytest.raises(InputError, match=r"gone\.csv': no such file"):
        ManifestSource(tmp_path / "gone.csv", 8)
