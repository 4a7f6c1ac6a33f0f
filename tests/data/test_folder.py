import json
import shutil
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from channelvq.data.folder import FolderSource, ManifestSource, SkippedFilesWarning
from channelvq.data.split import assign_split
from channelvq.errors import InputError
from channelvq.images import load_image, random_crop, to_tensor

SPLITS = ("train", "validation", "test")


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
    parts = {split: keys(FolderSource(tmp_path, 4, split, **fractions)) for split in SPLITS}
    assert sorted(key for part in parts.values() for key in part) == names
    assert all(assign_split(key, **fractions) == split for split, part in parts.items() for key in part)
    for name in names[::2]:
        (tmp_path / name).unlink()
    moved = tmp_path.with_name("moved")
    shutil.move(tmp_path, moved)
    for split in SPLITS:
        assert keys(FolderSource(moved, 4, split, **fractions)) == [k for k in parts[split] if k in names[1::2]]


def test_random_crop_and_flip_are_drawn_from_the_generator(tmp_path):
    fill(tmp_path, ["a.png"])
    image = load_image(tmp_path / "a.png")
    source = FolderSource(tmp_path, 8, "all", crop="random", min_side=9)
    for seed in range(3):
        expected = to_tensor(random_crop(image, 8, 9, gen(seed)))
        assert torch.equal(source.sample(0, gen(seed)).image, expected)
    flipping = FolderSource(tmp_path, 20, "all", flip=True)
    plain = FolderSource(tmp_path, 20, "all").sample(0, gen()).image
    seen = [flipping.sample(0, gen(seed)).image for seed in range(20)]
    mirrored = [torch.equal(x, plain.flip(-1)) for x in seen]
    assert all(m or torch.equal(x, plain) for m, x in zip(mirrored, seen, strict=True))
    assert 3 < sum(mirrored) < 17
    assert torch.equal(flipping.sample(0, gen(5)).image, seen[5])


def test_unreadable_files_are_found_when_the_source_is_made(tmp_path):
    fill(tmp_path, ["a.png", "c.png"])
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.warns(SkippedFilesWarning, match=r"1 of 3 images skipped; the first: .*b\.png.*it is empty") as record:
        source = FolderSource(tmp_path, 8, "all")
    assert record[0].filename == __file__
    assert keys(source) == ["a.png", "c.png"]
    assert [s.path.name for s in source.skipped] == ["b.png"]


def test_a_file_that_breaks_later_is_named(tmp_path):
    (tmp_path / "half.png").write_bytes(png()[:900])
    source = FolderSource(tmp_path, 8, "all")
    with pytest.raises(InputError, match=r"half\.png.*broken or incomplete"):
        source.sample(0, gen())


def test_folders_without_a_sample(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="no image file in it or below"):
        FolderSource(tmp_path, 8)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of 1 images can be read"):
        FolderSource(tmp_path, 8, "all")
    fill(tmp_path, ["a.png"])
    with pytest.raises(InputError, match=r"no image in split 'test' \(1 in train, 0 in validation, 0 in test\)"):
        FolderSource(tmp_path, 8, "test", validation=0, test=0)


def test_wrong_options_and_texts(tmp_path):
    fill(tmp_path, ["a.png"])
    for options in ({"split": "val"}, {"crop": "left"}, {"size": 0}, {"min_side": 0}):
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
    assert keys(ManifestSource(path, 8, "test", **fractions)) == expected


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
