"""What a folder or a manifest lists: what it takes in memory, and what is said of what is not used."""

import gc
import types
from pathlib import Path

import pytest
from tests.data.files.test_folder import fill, keys, png

from channelvq.data.files.folder import FolderSource, ManifestSource
from channelvq.data.files.listing import Entries, Entry
from channelvq.data.files.shard_writer import write_shards
from channelvq.errors import InputError
from channelvq.images.files import OtherFormatsWarning


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path_factory.mktemp("cache")))


# Memory


def reachable(thing: object) -> int:
    """Python objects that are held by one, itself among them."""
    seen: set[int] = set()
    left = [thing]
    while left:
        one = left.pop()
        if id(one) not in seen and not isinstance(one, type | types.ModuleType | types.FunctionType):
            seen.add(id(one))
            left += gc.get_referents(one)
    return len(seen)


def test_a_source_holds_no_object_for_each_image(tmp_path):
    # Of 300,000 each worker, a fork, would come to hold a copy: reading an object changes its count of references.
    few, many = (fill(tmp_path / str(n), [f"{i}.png" for i in range(n)]) for n in (10, 60))
    sources = [FolderSource(root, 8, "all") for root in (few, many)]
    assert [len(source) for source in sources] == [10, 60]
    assert reachable(sources[0]) == reachable(sources[1])


def test_entries_are_given_back_as_they_were(tmp_path):
    entries = [
        Entry(Path("a/ü \udcff.png"), "ü \udcff.png", None, "test"),
        Entry(Path("b.png"), "b.png", "", None),
        Entry(Path("/c.png"), "c", "a\ndog\0", "train"),
    ]
    packed = Entries(entries)
    assert list(packed) == entries
    assert packed[-1] == entries[-1]
    assert packed[1:] == entries[1:]
    with pytest.raises(IndexError):
        packed[3]


# What a user named


@pytest.mark.parametrize(
    ("name", "what"),
    [("none", r"^'.*none': no such file or folder"), ("none.csv", r"^'.*none\.csv': no such file"),
     ("folder", r"^manifest '.*folder': it is a folder, which the kind"),
     ("a.png", r"^manifest '.*a\.png': expected a \.jsonl or \.csv file")],
)  # fmt: skip
def test_what_is_no_manifest_is_called_by_what_it_is(tmp_path, name, what):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(InputError, match=what):
        ManifestSource(tmp_path / name, 8)
    if name == "none":
        with pytest.raises(InputError, match=what):
            write_shards(tmp_path / name, tmp_path / "out")


def test_formats_that_are_not_read_are_not_passed_over_in_silence(tmp_path):
    fill(tmp_path, ["a.png", "b.svg", "sub/c.SVG", "sub/d.dng", "e.txt", ".f.svg"])
    with pytest.warns(OtherFormatsWarning, match=r"passed over, .* not read: 1 \.dng, 2 \.svg; convert them") as record:
        assert keys(FolderSource(tmp_path, 8, "all")) == ["a.png"]
    assert len(record) == 1
