"""Files and folders that are written completely or not at all, by one process at a time, and known by their digests.

What is written grows in a folder of its own beside its place, `workplace`, and takes its place at the end. A process
that is killed leaves that folder behind; the next one that writes beside it sweeps it.
"""

import errno
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from channelvq.errors import InputError

LOCK = ".lock"  # in a folder that one process writes to
WORKPLACE_LOCK = ".channelvq-writing"
WORKPLACE = re.compile(r"\..+\.[a-z0-9_]{8}")  # as tempfile makes them
PATIENCE = 1.0  # seconds to wait for a lock: those who only ask whether it is held have it for a moment
YOUNG = 2.0  # seconds in which a workplace may not have its lock yet
SUMS = "SHA256SUMS"
UMASK = threading.Lock()  # two threads that ask for the process's mask at once, which is by setting it, would lose it


# One writer


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Within it no other process writes to `folder`; InputError where one does. A killed holder holds nothing."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{folder}: another process is writing to it; wait until it has ended, or choose another folder"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()
        with suppress(OSError):  # where nothing was written
            if made:
                folder.rmdir()


def check_not_held(folder: Path) -> None:
    """InputError where another process is the only writer of `folder`; any number of processes may ask at once."""
    if (folder / LOCK).exists():
        with only_writer(folder):
            pass


def was_held(folder: Path) -> bool:
    """Whether the lock of `only_writer` is there: of a writer that is alive, or that was killed."""
    lock = folder / LOCK
    return lock.is_file() and not lock.stat().st_size  # a file of that name with content is somebody else's


@contextmanager
def workplace(place: Path) -> Iterator[Path]:
    """A new folder beside `place` to write in, which is gone afterwards; what killed writers left there is swept."""
    place.parent.mkdir(parents=True, exist_ok=True)
    _sweep(place.parent)
    made = tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.", ignore_cleanup_errors=True)
    with made as folder, FileLock(Path(folder, WORKPLACE_LOCK)):
        try:
            yield Path(folder)
        finally:  # while the lock says whose it is: a folder without a lock is only swept where it is empty
            _empty(Path(folder))


def _sweep(folder: Path) -> None:
    """Remove the workplaces in a folder whose writers were killed, at whatever place each would have written."""
    for lock in folder.glob(f".*/{WORKPLACE_LOCK}"):
        with suppress(OSError):  # its writer has just ended
            if not _is_young(lock):
                with suppress(Timeout), FileLock(lock, timeout=0):  # held by a writer that is alive
                    _empty(lock.parent)  # the lock last: whoever is killed here leaves what the next one may sweep
                    shutil.rmtree(lock.parent, ignore_errors=True)
    for left in folder.glob(".*"):
        with suppress(OSError):  # it is not empty, or not a folder
            if WORKPLACE.fullmatch(left.name) and not _is_young(left):
                left.rmdir()  # its writer was killed before it had its lock, or after it had given it back


def _is_young(path: Path) -> bool:
    return time.time() - path.stat().st_mtime < YOUNG


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != WORKPLACE_LOCK:
            with suppress(OSError):
                path.unlink()


# Whole or not at all


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then give it its name: a reader never meets half a file.

    Missing folders are made; the permissions are those that open() would give. A link stays and what it leads to is
    written; a device or a pipe is written to as it is, since taking its place would destroy it. Raises OSError that
    names `path` where that cannot be done, and leaves nothing behind then.
    """

    def fill(place: Path) -> None:
        with place.open("wb") as stream:
            write(stream)

    if is_stream(path):  # by this name: that of a pipe behind /dev/stdout cannot be opened
        fill(path)
    else:
        replace_file(path, fill)


def is_stream(path: Path) -> bool:
    """Whether it is a device or a pipe: what is read or written once, in order."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_text_atomically(path: Path, text: str) -> None:
    """`write_atomically` for text, as UTF-8."""
    write_atomically(path, lambda stream: stream.write(text.encode()))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """As `write_atomically`, for what writes to a path rather than to a stream; it may put a file of its own there."""
    path = path.resolve()
    try:
        with workplace(path) as folder:
            new = folder / path.name
            write(new)
            _make_ordinary(new)
            os.replace(new, path)
    except OSError as error:  # of the temporary file, which tells nobody anything
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


@contextmanager
def filled_folder(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder`, whose files are moved into `folder` at the end; after an exception none is.

    For writers that choose the names of their files themselves. Files of other names stay; permissions as above.
    """
    with workplace(folder / "partial") as temporary:
        new = temporary / "new"
        new.mkdir()
        yield new
        make_ordinary(new)
        for path in sorted(path for path in new.rglob("*") if path.is_file()):
            place = folder / path.relative_to(new)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place at the end; after an exception the old one is as it was."""
    folder = folder.resolve()
    with workplace(folder) as temporary:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        yield new
        make_ordinary(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def make_ordinary(folder: Path) -> None:
    """Give every file in a folder the permissions that open() would give: safetensors 0.8 writes private files."""
    for path in folder.rglob("*"):
        if path.is_file():
            _make_ordinary(path)


def _make_ordinary(path: Path) -> None:
    with UMASK:
        mask = os.umask(0)
        os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


# Digests


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder to its SHA256SUMS, which `sha256sum -c` reads."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)
    text = "".join(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    (folder / SUMS).write_text(text, encoding="utf-8")


def damaged(folder: Path) -> list[str]:
    """Names of the files of a folder that are missing or not as they were when `write_sums` was called."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return [SUMS]
    if lines.pop() or not all(re.fullmatch(r"[0-9a-f]{64}  [^\0]+", line) for line in lines):
        return [SUMS]
    expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    # By what is there and not by what is named: a stranger's list may lead out of the folder.
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return [name for name, digest in expected.items() if name not in there or _sha256(there[name]) != digest]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


# JSON


def parse_json(text: str | bytes) -> Any:
    """What JSON text holds; raises ValueError for anything else, and for what is nested deeper than Python can go."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def remember(path: Path, content: Any) -> None:
    """Write plain data that `recall` gives back; a cache that cannot be written costs time only."""
    text = json.dumps(content)
    with suppress(OSError):
        write_text_atomically(path, f"{sha256(text.encode()).hexdigest()}\n{text}")


def recall(path: Path) -> Any:
    """What `remember` wrote; None where it is missing or a byte of it has changed."""
    try:
        digest, text = path.read_bytes().split(b"\n", 1)
        return parse_json(text) if sha256(text).hexdigest().encode() == digest else None
    except (OSError, ValueError):
        return None
