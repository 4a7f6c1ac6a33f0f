"""The index of a shard: made once, kept as it was written, made again where anything is different."""

from pathlib import Path

import pytest
from tests.data.files.tars import assert_same, gen, keys, picture, samples, write_tar

from channelvq.data.files import shard_index
from channelvq.data.files.shards import ShardSource
from channelvq.data.options import SkippedFilesWarning
from channelvq.errors import InputError
from channelvq.images import load_image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CHANNELVQ_CACHE", str(folder))
    return folder


def test_a_shard_is_read_once_until_it_changes(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_tar(tmp_path / "s.tar", {"a.png": picture(), "b.png": b"", "c.png": picture(2), "c.txt": b"see"})
    decoded = []
    monkeypatch.setattr(shard_index, "load_image", lambda content: (decoded.append(len(content)), load_image(content)))
    with pytest.warns(SkippedFilesWarning):
        first = ShardSource(str(shard), 8, "all")
    assert len(decoded) == 3
    with pytest.warns(SkippedFilesWarning):
        again = ShardSource(str(shard), 8, "all")
    assert len(decoded) == 3
    assert again.skipped == first.skipped
    assert_same(samples(again), samples(first))
    (memory,) = (cache / "shards").iterdir()
    for broken in (b"", b"PK", memory.read_bytes()[:-40]):
        memory.write_bytes(broken)
        with pytest.warns(SkippedFilesWarning):
            assert_same(samples(ShardSource(str(shard), 8, "all")), samples(first))
    assert len(decoded) == 3 * 4
    write_tar(shard, {"d.png": picture(3)})
    assert keys(ShardSource(str(shard), 8, "all")) == ["d.png"]
    with pytest.raises(InputError, match=r"s\.tar' has changed since the run began"):
        first.sample(0, gen())
    shard.unlink()
    with pytest.raises(InputError, match=r"s\.tar' cannot be read: No such file"):
        first.sample(0, gen())


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_tar(tmp_path / "s.tar", {"a.png": picture()})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "file" / "below"))
    assert keys(ShardSource(str(shard), 8, "all")) == ["a.png"]


def test_an_index_with_any_byte_changed_is_made_again(tmp_path: Path, cache: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", {"a.png": picture(0), "b.png": picture(1)})
    whole = shard_index.index_shard(shard, "text")
    (memory,) = (cache / "shards").iterdir()
    content = memory.read_bytes()
    for place in range(len(content)):
        memory.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        found = shard_index._remembered(memory, shard, whole.stamp)
        same = found is not None and found.samples.tobytes() == whole.samples.tobytes()
        assert found is None or (same and found.keys.tobytes() == whole.keys.tobytes()), place


def test_a_caption_nested_too_deeply_leaves_out_its_image(tmp_path: Path) -> None:
    deep = b'{"text":' * 10**5
    shard = write_tar(tmp_path / "a.tar", [("a.png", picture(0)), ("a.json", deep), ("b.png", picture(1))])
    index = shard_index.index_shard(shard, "text")
    assert len(index.samples) == 1
    assert "nested too deeply" in index.skipped[0].reason
