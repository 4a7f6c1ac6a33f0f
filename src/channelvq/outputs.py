"""Where results may go: never onto what a command reads, and into somebody else's folder only with --overwrite.

One rule for the files and folders of all commands, checked before any work is done. `files.only_writer` is the lock of
the folder then.
"""

import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from channelvq.errors import InputError
from channelvq.files import is_stream, was_held


def check_outputs(
    files: Iterable[Path | None] = (),
    folder: Path | None = None,
    *,
    inputs: Iterable[str | Path | None] = (),
    own: tuple[str, ...] = (),
    overwrite: bool = False,
) -> None:
    """InputError for an output that cannot be written, or must not be.

    inputs: what the command reads; names that are no paths, such as "bundled", do no harm. own: patterns of the names
    that the command gives its files: a folder that is not empty and has none of them is somebody else's, but where a
    killed command has left its lock. overwrite: write into such a folder all the same. What is read is never written
    to.
    """
    read = [Path(given).resolve() for given in inputs if given is not None and os.path.lexists(given)]
    taken: list[Path] = []
    for file in filter(None, files):
        _check_writable(file)
        place = file.resolve()
        if place in taken or any(_holds(given, place) for given in read):
            raise InputError(
                f"cannot write {str(file)!r}: the same command reads or writes that file for something else; "
                "choose another place"
            )
        taken.append(place)
    if folder is not None:
        _check_writable(folder, folder=True)
        if inside := [given for given in read if given.is_dir() and given.is_relative_to(folder.resolve())]:
            raise InputError(
                f"cannot write to {str(folder)!r}: the command reads {str(inside[0])!r}; choose another place"
            )
        if not overwrite:
            _check_own(folder, own)


def _holds(given: Path, place: Path) -> bool:
    """Whether an output that is there is an input, or inside of a folder that is one."""
    if not place.exists():
        return False
    return place.is_relative_to(given) or given.samefile(place)


def _check_own(folder: Path, own: tuple[str, ...]) -> None:
    if was_held(folder):  # by a command that passed here, and was killed before it had written what tells whose it is
        return
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    if names and not any(fnmatch(name, pattern) for name in names for pattern in own):
        raise InputError(
            f"cannot write to {str(folder)!r}: it holds {len(names)} file(s) of something else ({min(names)!r}, ...); "
            "choose another folder, or write into it with --overwrite"
        )


def _check_writable(path: Path, *, folder: bool = False) -> None:
    try:
        os.lstat(path)
    except ValueError as error:  # NUL, or half of a surrogate pair: recipes can hold them
        raise InputError(f"cannot write {str(path)!r}: no file can have this name ({error})") from None
    except OSError:  # it is not there, or cannot be reached, which is told below
        pass
    if not folder and is_stream(path) and os.access(path, os.W_OK):
        return
    if os.path.lexists(path) and path.is_dir() != folder:
        given = "a file, expected a folder" if folder else "a folder, expected a file"
        raise InputError(f"cannot write {str(path)!r}: it is {given}; choose another place")
    start = path if folder else path.absolute().parent
    above = next(place for place in (start, *start.absolute().parents) if os.path.lexists(place))
    if not above.is_dir():
        raise InputError(f"cannot write {str(path)!r}: {str(above)!r} is a file, not a folder; choose another place")
    if not os.access(above, os.W_OK):
        raise InputError(f"cannot write {str(path)!r}: no permission to write to {str(above)!r}; choose another place")
