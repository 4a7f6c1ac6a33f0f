"""Files and folders that are written completely or not at all."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then give it its name: a reader never meets half a file.

    Missing folders are made; the permissions are those that open() would give. A link stays and what it leads to is
    written; a device or a pipe is written to as it is, since taking its place would destroy it. Raises OSError where
    that cannot be done, and leaves nothing behind then.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(temporary))
        _make_ordinary(Path(temporary))  # mkstemp makes private files
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # after the replacement it is no longer there
            os.unlink(temporary)


@contextmanager
def filled_folder(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder`, whose files are moved into `folder` at the end; after an exception none is.

    For writers that choose the names of their files themselves. Files of other names stay; permissions as above.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as temporary:
        new = Path(temporary)
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
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
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
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
