"""Files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then give it its name: a reader never meets half a file.

    Missing folders are made; the permissions are those that open() would give. A link stays and what it leads to is
    written; a device or a pipe is written to as it is, since taking its place would destroy it. Raises OSError where
    that cannot be done, and leaves nothing behind then.
    """
    path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as stream:
            write(stream)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
        mask = os.umask(0)  # mkstemp makes private files
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # after the replacement it is no longer there
            os.unlink(temporary)
