"""Shards behind an address: the same samples as from a disk, over connections that break, and a cache that is bounded.

The server is a real one on the loopback, told how to misbehave.
"""

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from channelvq.bulk import tokenize_shards
from channelvq.data.files import remote
from channelvq.data.files.check import check_source
from channelvq.data.files.remote import RemotePath, is_remote, local_copy, remote_path, state_of
from channelvq.data.files.shard_index import shard_file
from channelvq.data.files.shards import ShardSource
from channelvq.data.files.token_shards import read_token_folder
from channelvq.data.files.tokens import TokenSource
from channelvq.data.stream import Mixture, training_batches
from channelvq.errors import InputError

pytest.importorskip("aiohttp", reason="the extra remote")


@dataclass
class Server:
    """root: what it serves. breaks: how many answers with content break off halfway. fails: how many are 503.

    parts: whether it gives ranges. asked: ranges and whole files by name; sent: bytes by name.
    """

    root: Path
    address: str = ""
    breaks: int = 0
    fails: int = 0
    parts: bool = True
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def spend(self, what: str) -> bool:
        """Whether one more misfortune is left."""
        with self.lock:
            left = getattr(self, what)
            setattr(self, what, max(0, left - 1))
            return left > 0


@pytest.fixture
def server(tars: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server(tars)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(head=True)

        def do_GET(self) -> None:
            self.answer(head=False)

        def answer(self, head: bool) -> None:
            name = self.path.removeprefix("/data/")
            path = served.root / name
            if served.spend("fails"):
                self.send_error(503)
                return
            if not path.is_file():
                self.send_error(404)
                return
            content, given = path.read_bytes(), self.headers.get("Range", "")
            first, last = 0, len(content) - 1
            if served.parts and given:
                first, last = (int(n) for n in given.removeprefix("bytes=").split("-"))
            part = content[first : last + 1]
            self.send_response(206 if given and served.parts else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
            self.end_headers()
            if head:
                return
            with served.lock:
                served.asked.append((name, given))
            if served.spend("breaks"):
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
                self.connection.close()
                return
            served.sent[name] += len(part)
            self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        served.address = f"http://127.0.0.1:{http.server_port}/data"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield served
        http.shutdown()
        thread.join()


def samples(source: ShardSource) -> list[tuple[str, str, bytes]]:
    found = (source.sample(i, torch.Generator().manual_seed(0)) for i in range(len(source)))
    return [(sample.key, sample.text, sample.image.numpy().tobytes()) for sample in found]


def copies(cache: Path, kind: str = "tar") -> list[Path]:
    return sorted((cache / "remote").glob(f"*.{kind}"))


NAMES = "images-{00000..00002}.tar"


def test_samples_are_those_of_the_disk_with_and_without_copies(
    server: Server, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = samples(ShardSource(f"{tars}/{NAMES}", 16, "all"))
    source = ShardSource(f"{server.address}/{NAMES}", 16, "all")
    assert server.sent == {path.name: path.stat().st_size for path in tars.glob("*.tar")}  # once, whole
    assert samples(source) == expected
    assert sum(server.sent.values()) == sum(path.stat().st_size for path in tars.glob("*.tar"))
    again = ShardSource(f"{server.address}/{NAMES}", 16, "all")
    assert again.stamp() == source.stamp()
    for copy in copies(tmp_path / "cache"):
        copy.unlink()
    server.asked.clear()
    assert samples(again) == expected
    assert len(server.asked) == 14 + 9  # each image and each caption, by its range
    assert all(given for _, given in server.asked)
    near = Mixture({"mine": ShardSource(f"{tars}/{NAMES}", 16, "all")}, {"mine": 1.0}, 3)
    far = Mixture({"mine": again}, {"mine": 1.0}, 3)
    for one, other in zip(*(training_batches(data, 7, 0, 2, workers=2) for data in (near, far)), strict=True):
        assert torch.equal(one, other)  # in processes that are forks of one that has connections
    monkeypatch.setenv(remote.ROOM, "0")
    (tars / "images-00000.tar").touch()  # another version: indexed anew, from a copy that does not stay
    assert samples(ShardSource(f"{server.address}/{NAMES}", 16, "all")) == expected
    assert copies(tmp_path / "cache") == []


def test_broken_connections_and_busy_servers_are_tried_again(
    server: Server, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PIECE", 1000)
    server.breaks, server.fails = 3, 2
    source = ShardSource(f"{server.address}/{NAMES}", 16, "all")
    assert (server.breaks, server.fails) == (0, 0)
    assert samples(source) == samples(ShardSource(f"{tars}/{NAMES}", 16, "all"))
    for copy in copies(tmp_path / "cache"):
        copy.unlink()
    server.breaks = 2
    assert len(samples(source)) == 14
    server.fails = 1000
    with pytest.raises(InputError, match=r"images-0000\d\.tar' cannot be read after 6 tries: 503.*reachable"):
        samples(source)


def test_a_copy_goes_on_where_it_was_stopped(
    server: Server, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PIECE", 1000)
    path = remote_path(f"{server.address}/images-00000.tar")
    state = state_of(path)
    assert state is not None
    fetched, pieces = remote._range, []

    class StoppedError(BaseException):
        """As a signal would."""

    def stop_at_the_fourth(path: RemotePath, first: int, size: int) -> bytes:
        pieces.append(first)
        if len(pieces) == 4:
            raise StoppedError
        return fetched(path, first, size)

    monkeypatch.setattr(remote, "_range", stop_at_the_fourth)
    with pytest.raises(StoppedError), local_copy(path, state):
        pass
    assert [part.stat().st_size for part in copies(tmp_path / "cache", "tar.part")] == [3000]
    server.asked.clear()
    with local_copy(path, state) as place:
        assert place.read_bytes() == (tars / "images-00000.tar").read_bytes()
    assert server.asked[0] == ("images-00000.tar", "bytes=3000-3999")
    assert copies(tmp_path / "cache", "tar.part") == []


def test_a_copy_that_is_cut_is_not_believed(server: Server, tars: Path, tmp_path: Path) -> None:
    expected = samples(ShardSource(f"{tars}/{NAMES}", 16, "all"))
    source = ShardSource(f"{server.address}/{NAMES}", 16, "all")
    for copy in copies(tmp_path / "cache"):
        copy.write_bytes(copy.read_bytes()[:2000])
    assert samples(source) == expected
    shard = shard_file(remote_path(f"{server.address}/images-00000.tar"))
    with shard.whole() as place:
        assert place.read_bytes() == (tars / "images-00000.tar").read_bytes()


def test_the_cache_keeps_to_its_room_and_what_was_used_last(
    server: Server, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [path.stat().st_size for path in sorted(tars.glob("*.tar"))]
    monkeypatch.setenv(remote.ROOM, str((sizes[0] + sizes[1] + 10) / 1e9))
    shards = [shard_file(remote_path(f"{server.address}/images-0000{i}.tar")) for i in range(3)]
    places = []
    for i, shard in enumerate(shards):
        with shard.whole() as place:
            places.append(place)
            os.utime(place, (i, i))
    assert [place.exists() for place in places] == [False, True, True]  # the one that was used before the others
    with shards[1].whole(), shards[0].whole():  # what is in use stays, however old
        assert [place.exists() for place in places] == [True, True, False]
    monkeypatch.setenv(remote.ROOM, "much")
    with pytest.raises(InputError, match=r"CHANNELVQ_REMOTE_GB='much': expected how many gigabytes"):
        remote.room()


def test_missing_shards_and_servers_without_parts_are_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"2 of 4 files are missing: http://\S+/images-00003\.tar, http://\S+04\.tar"):
        ShardSource(f"{server.address}/images-{{00001..00004}}.tar", 16)
    server.parts = False
    monkeypatch.setattr(remote, "PIECE", 1000)
    with pytest.raises(InputError, match=r"images-00000\.tar': its server gives no parts of files; copy the shards"):
        ShardSource(f"{server.address}/images-00000.tar", 16)


@pytest.mark.filterwarnings("ignore::channelvq.data.options.SkippedFilesWarning")
def test_a_cut_shard_and_broken_members_are_named_by_their_address(server: Server, tars: Path) -> None:
    whole = (tars / "images-00001.tar").read_bytes()
    (tars / "images-00001.tar").write_bytes(whole[:3000])
    report = check_source(f"{server.address}/{NAMES}")
    assert (report.images, report.broken_shards_count) == (9, 1)
    assert str(report.broken_shards[0].path) == f"{server.address}/images-00001.tar"
    at = whole.index(b"IDAT") + 8
    (tars / "images-00001.tar").write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
    address = f"{server.address}/images-00001.tar"
    # As it is checked, as it is indexed, and as the index remembers it.
    for broken in (check_source(address).broken, *(ShardSource(address, 16, "all").skipped for _ in range(2))):
        assert [str(entry.path) for entry in broken] == [f"{address}/05.png"]


def test_tokens_of_remote_tars_and_remote_tokens(
    server: Server, tars: Path, tmp_path: Path, tiny_tokenizer: Path
) -> None:
    tokenize_shards(str(tars), tmp_path / "near", tiny_tokenizer)
    tokenize_shards(f"{server.address}/{NAMES}", tmp_path / "far", tiny_tokenizer)
    for name in ("images-00000.safetensors", "images-00002.jsonl"):
        assert (tmp_path / "near" / name).read_bytes() == (tmp_path / "far" / name).read_bytes()
    server.root = tmp_path / "far"
    server.breaks = 2
    source = TokenSource(server.address, 16, "all")
    _, expected = read_token_folder(tmp_path / "near")
    assert torch.equal(source.tokens.ids, expected.ids)
    assert (source.tokens.captions, source.tokens.keys) == (expected.captions, expected.keys)
    (tmp_path / "far/images-00001.jsonl").unlink()
    with pytest.raises(InputError, match=r"http://\S+/images-00001\.jsonl"):
        TokenSource(server.address, 16, "all")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("pipe:cat x.tar", "expected http"), ("ftp://host/x.tar", "expected http"),
        ("file:///etc/x.tar", "expected http"),
        ("https://host", "a host, or a bucket, and a path"), ("s3:///x.tar", "a host, or a bucket"),
        ("https://me:secret@host/x.tar", "no user and password"), ("https://host/a/../x.tar", "a plain path"),
        ("https://host/x.tar?token=1", "a plain path"), ("https://host//x.tar", "a plain path"),
        ("https://host/x\x1b.tar", "printable"), ("https://[host/x.tar", "Invalid IPv6"),
        ("simplecache://s3://b/x.tar", "expected http"),
    ],
)  # fmt: skip
def test_names_that_are_refused(name: str, part: str) -> None:
    assert is_remote(name)
    with pytest.raises(InputError, match=part):
        remote_path(name)


def test_an_address_is_a_path() -> None:
    path = remote_path("s3://bucket/set/train-00000.tar")
    assert (str(path), path.stem, path.name) == ("s3://bucket/set/train-00000.tar", "train-00000", "train-00000.tar")
    assert str(path / "a" / "b.png") == "s3://bucket/set/train-00000.tar/a/b.png"
    assert RemotePath(str(path)) == path
    assert str(path.parent) == "s3://bucket/set"


def test_what_is_missing_for_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(InputError, match=r"pip install 'channelvq\[remote\]'"):
        ShardSource("https://localhost/x.tar", 16)


def test_a_bucket(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server", reason="a server of S3's protocol")
    pytest.importorskip("s3fs", reason="the extra remote")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        bucket = boto3.resource("s3").create_bucket(Bucket="pictures")
        for path in sorted(tars.glob("*.tar")):
            bucket.put_object(Key=f"set/{path.name}", Body=path.read_bytes())
        source = ShardSource(f"s3://pictures/set/{NAMES}", 16, "all")
        for copy in copies(Path(os.environ["CHANNELVQ_CACHE"])):
            copy.unlink()
        assert samples(source) == samples(ShardSource(f"{tars}/{NAMES}", 16, "all"))
        with pytest.raises(InputError, match=r"1 of 1 files are missing: s3://pictures/none\.tar"):
            ShardSource("s3://pictures/none.tar", 16)
        with pytest.raises(InputError, match=r"1 of 1 files are missing: s3://nowhere/none\.tar"):
            ShardSource("s3://nowhere/none.tar", 16)
    finally:
        server.stop()
