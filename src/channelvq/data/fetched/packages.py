"""Data packages from the package registries, by their own clients, into the user's cache.

    fetch("fluent-emoji") -> ~/.cache/channelvq/fluent-emoji-1a2b3c4d/images/*.webp, LICENCE.txt, SOURCE.json

Nothing is fetched but what `catalogue.py` pins by version and SHA-256. A package appears in the cache complete or not
at all, with the digests of its files; one in which a file is missing or has changed is fetched again.
"""

import fnmatch
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from channelvq.data.fetched.catalogue import FREE, PACKAGES, Archive, Package, Work
from channelvq.data.fetched.licence_texts import licence_text
from channelvq.errors import InputError
from channelvq.files import SUMS, damaged, workplace, write_sums

Progress = Callable[[str], None]
SECONDS_PER_COMMAND = 1800
_whole: set[Path] = set()  # folders of packages whose digests this process has compared
SAFE_NAME = re.compile(r"[A-Za-z0-9_@+-][A-Za-z0-9._@+-]*")


def cache_root(cache: Path | str | None = None) -> Path:
    """The folder of all packages: `cache`, or $CHANNELVQ_CACHE, or ~/.cache/channelvq."""
    try:
        return Path(cache or os.environ.get("CHANNELVQ_CACHE") or Path.home() / ".cache" / "channelvq").expanduser()
    except RuntimeError:  # no home: a folder that cannot be there, so that nothing is found or kept
        return Path(os.devnull) / "channelvq"


def find_package(name: str, cache: Path | str | None = None) -> Path | None:
    """The folder of a package that has been fetched and is as it was then, or None. Never downloads."""
    folder = cache_root(cache) / _package(name).folder
    if folder not in _whole and not damaged(folder):
        _whole.add(folder)
    return folder if folder in _whole and (folder / SUMS).is_file() else None


def tell(line: str) -> None:
    """A line for people, on stderr."""
    print(line, file=sys.stderr, flush=True)


def fetch(name: str, *, cache: Path | str | None = None, progress: Progress | None = tell) -> Path:
    """The folder of data package `name`, downloaded into the cache on the first call.

    progress is given a line of text as each step begins; None: nothing is said. Raises InputError if the name is
    unknown, if a registry's client is missing or fails (no network, a version that is no longer served), or if a
    hash is not the pinned one.
    """
    package = _package(name)
    if folder := find_package(name, cache):
        return folder
    root = cache_root(cache)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cache folder {str(root)!r} cannot be made ({error}); set CHANNELVQ_CACHE to a folder you can write to"
        ) from error
    with workplace(root / package.folder) as temporary:
        content = temporary / "content"
        for archive in package.archives:
            if progress:
                progress(f"{name}: downloading, {' '.join(download_command(archive))}")
            _unpack(package, archive, _download(package, archive, temporary), content)
        _describe(package, content)
        write_sums(content)
        _publish(content, root / package.folder)
    return root / package.folder


def licences() -> list[Work]:
    """The works that bundled weights may be trained on, with licences and authors: what a model card lists."""
    return [work for package in FREE for work in package.works]


def download_command(archive: Archive) -> list[str]:
    """The command that downloads an archive into the working directory."""
    # fmt: off
    match archive.client:
        case "npm":
            return ["npm", "pack", "--loglevel=error", "--fetch-retries=1", "--ignore-scripts",
                    f"{archive.name}@{archive.version}"]
        case "apt":
            return ["apt-get", "download", f"{archive.name}={archive.version}"]
        case "pip":
            return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                    "--disable-pip-version-check", f"{archive.name}=={archive.version}"]
    # fmt: on


def _package(name: str) -> Package:
    if name not in PACKAGES:
        raise InputError(f"data package {name!r} is unknown: the packages are {', '.join(sorted(PACKAGES))}")
    return PACKAGES[name]


def _download(package: Package, archive: Archive, temporary: Path) -> Path:
    folder = Path(tempfile.mkdtemp(dir=temporary))
    hint = "is the network reachable?"
    if archive.client == "apt":
        hint = "run `apt-get update` first; Debian may no longer serve this version"
    _run(package, download_command(archive), folder, hint)
    files = [path for path in folder.iterdir() if path.is_file()]
    if len(files) != 1:
        raise InputError(f"data package {package.name!r}: {archive.client} left {len(files)} files instead of one")
    if archive.sha256:
        _check(package, archive.name, hashlib.sha256(files[0].read_bytes()).hexdigest(), archive.sha256)
    return files[0]


def _run(package: Package, command: list[str], folder: Path, hint: str) -> None:
    shown = f"data package {package.name!r}: `{' '.join(command)}`"
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS_PER_COMMAND)
    except FileNotFoundError:
        raise InputError(f"{shown} cannot run: install the command {command[0]!r} first") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{shown} took over {SECONDS_PER_COMMAND} s and was stopped: {hint}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-400:]
        raise InputError(f"{shown} failed with exit status {done.returncode} ({hint}): {said}")


def _check(package: Package, what: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise InputError(
            f"data package {package.name!r}: {what} has SHA-256 {actual}, expected {expected}: not what was pinned"
        )


def _unpack(package: Package, archive: Archive, path: Path, content: Path) -> None:
    """Take the wanted files: each lands directly in its folder under its bare name, so no member can escape."""
    missing = set(archive.files)
    for member, read in _members(package, archive, path):
        target = next((to for pattern, to in archive.wanted.items() if fnmatch.fnmatchcase(member, pattern)), None)
        if target is None:
            continue
        name = PurePosixPath(member).name
        if not SAFE_NAME.fullmatch(name):
            raise InputError(f"data package {package.name!r}: {archive.name} holds a file with the odd name {name!r}")
        data = read()
        if name in archive.files:
            _check(package, f"{archive.name}: {name}", hashlib.sha256(data).hexdigest(), archive.files[name])
            missing.discard(name)
        (content / target).mkdir(parents=True, exist_ok=True)
        (content / target / name).write_bytes(data)
    if missing:
        raise InputError(f"data package {package.name!r}: {archive.name} lacks {', '.join(sorted(missing))}")


def _members(package: Package, archive: Archive, path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, reader) of the plain files of a .whl, .tgz or .deb; links and devices are passed over."""
    if archive.client == "pip":
        yield from _zip_members(path)
        return
    if archive.client == "apt":
        plain = path.parent / "content.tar"
        command = ["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" > "$2"', "sh", str(path), str(plain)]
        _run(package, command, path.parent, "is dpkg-deb installed?")
        path = plain
    with tarfile.open(path) as tar:
        for info in tar:
            if info.isfile() and (stream := tar.extractfile(info)) is not None:
                yield info.name, stream.read
                if any(pattern.startswith(f"{info.name}!") for pattern in archive.wanted):
                    yield from _zip_members(io.BytesIO(stream.read()), f"{info.name}!")


def _zip_members(file: Path | io.BytesIO, prefix: str = "") -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(file) as content:
        for info in content.infolist():
            if not info.is_dir():
                yield prefix + info.filename, lambda info=info: content.read(info)


def _describe(package: Package, content: Path) -> None:
    source = {
        "package": package.name,
        "archives": [
            {key: value for key, value in asdict(archive).items() if key in ("client", "name", "version", "sha256")}
            for archive in package.archives
        ],
        "works": [asdict(work) for work in package.works],
    }
    (content / "LICENCE.txt").write_text(licence_text(package), encoding="utf-8")
    (content / "SOURCE.json").write_text(json.dumps(source, indent=1, ensure_ascii=False), encoding="utf-8")


def _publish(content: Path, folder: Path) -> None:
    """Move a finished package to its place; if another process was first, its copy is as good as this one."""
    if folder.is_dir() and damaged(folder):
        shutil.rmtree(folder)
    try:
        content.rename(folder)
    except OSError:
        if damaged(folder):
            raise
