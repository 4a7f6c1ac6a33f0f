"""Shards behind http(s):// and s3://, by fsspec: names, parts of files with retries, and a cache of bounded size.

    RemotePath --state_of--> size and version
               --read--> some bytes: of the copy in the cache where there is one, else asked for by their range
               --local_copy--> a file of this machine, while it is needed, and then for as long as there is room

Nothing is executed: no pipes, no chained addresses, three schemes. A copy is fetched in pieces, so a connection that
breaks costs one piece, and a process that is killed leaves the pieces for the next.
"""

import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import SplitResult, urlsplit

from filelock import FileLock, Timeout

from channelvq.data.fetched.packages import cache_root
from channelvq.data.files.listing import Stamp
from channelvq.errors import InputError, reason

SCHEMES = ("http", "https", "s3")
ROOM = "CHANNELVQ_REMOTE_GB"  # the variable of the environment
DEFAULT_ROOM = 20.0
PIECE = 2**24  # bytes asked for at a time
TRIES = 6
PAUSE = 0.25  # seconds before the second try, twice as long before each further one
AT_ONCE = 16  # files that are asked for their size
AGAIN = (408, 425, 429)  # answers of the kind 4xx that another try may change


class RemotePath(PurePosixPath):
    """An address as a path: name, stem, parent and / as those of files, str with both slashes of "https://".

    state: the file's, where it has been asked for.
    """

    state: Stamp | None = None

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)


def is_remote(name: str) -> bool:
    """Whether it is an address and no path of this machine."""
    return "://" in name or name.startswith("pipe:")


def remote_path(name: str) -> RemotePath:
    """The address, checked; InputError for another scheme, no host or file, and what a name should not hold."""
    try:
        wrong = _wrong_with(name, urlsplit(name))
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise InputError(f"shard {name!r}: {wrong}; give such an address, or copy the shards to a disk")
    return RemotePath(name)


def _wrong_with(name: str, parts: SplitResult) -> str:
    if parts.scheme not in SCHEMES:
        return f"expected {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
    if not parts.netloc or not parts.path.strip("/"):
        return "expected a host, or a bucket, and a path"
    if "@" in parts.netloc:
        return "expected no user and password in it, which would be in every message"
    folders = parts.path.removeprefix("/").split("/")
    if "?" in name or "#" in name or any(folder in ("", ".", "..") for folder in folders):
        return "expected a plain path, without ?, # and .."
    return "" if name.isprintable() and " " not in name else "expected printable characters without spaces"


def states_of(paths: Sequence[RemotePath]) -> list[RemotePath]:
    """Ask for the state of each, many at a time; those that are not there come back."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(_asked, paths))
    for path, state in zip(paths, found, strict=True):
        path.state = state
        if state is not None:
            with suppress(OSError):
                os.utime(_place(path, state))  # of this run, so the last to be given up
    return [path for path, state in zip(paths, found, strict=True) if state is None]


def state_of(path: RemotePath) -> Stamp | None:
    """Size and version (of the server's ETag or time of change) of a file; None where there is none."""
    if path.state is None:
        path.state = _asked(path)
    return path.state


def _asked(path: RemotePath) -> Stamp | None:
    try:
        info = _tried(path, lambda system: system.info(str(path)))
    except FileNotFoundError:
        return None
    if not isinstance(info.get("size"), int) or info.get("type") == "directory" or info.get("partial") is False:
        raise InputError(
            f"shard {str(path)!r}: its server tells no size, or gives no parts of files; copy the shards to a disk"
        )
    version = next((str(info[key]) for key in ("ETag", "LastModified", "Last-Modified") if info.get(key)), "")
    return Stamp(info["size"], int.from_bytes(sha256(version.encode()).digest()[:8], "big") >> 1)


# Bytes


def read(path: RemotePath, state: Stamp, first: int, size: int) -> bytes:
    """Some bytes of a file in this state, from the cache or from its server."""
    with suppress(FileNotFoundError), _place(path, state).open("rb") as file:
        file.seek(first)
        if len(content := file.read(size)) == size:
            return content
    return _range(path, first, size)


def _range(path: RemotePath, first: int, size: int) -> bytes:
    def ask(system: Any) -> bytes:
        content = system.cat_file(str(path), start=first, end=first + size)
        if len(content) < size:
            raise OSError(f"{len(content)} of {size} bytes came")
        if len(content) > size:
            raise InputError(f"shard {str(path)!r}: its server gives no parts of files; copy the shards to a disk")
        return content

    try:
        return _tried(path, ask)
    except FileNotFoundError:
        raise InputError(f"shard {str(path)!r} is no longer there") from None


def _tried(path: RemotePath, ask: Callable[[Any], Any]) -> Any:
    """What `ask` gives, of a server that may fail now and then; FileNotFoundError, or InputError for what stays."""
    last: Exception | None = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            return ask(_system(path))
        except InputError:
            raise
        except Exception as error:  # of aiohttp, botocore, asyncio and the system
            last = error
            if _stays(path, error):
                break
    assert last is not None
    if isinstance(last, FileNotFoundError) and _stays(path, last):
        raise FileNotFoundError(str(path)) from None
    cause = last.__cause__ if isinstance(last, FileNotFoundError) and last.__cause__ else last
    told = f"after {TRIES} tries" if not _stays(path, last) else "as things are"
    raise InputError(f"shard {str(path)!r} cannot be read {told}: {reason(cause)}; is its server reachable?") from None


def _stays(path: RemotePath, error: Exception) -> bool:
    """Whether asking again cannot help."""
    statuses = [getattr(each, "status", None) for each in (error, error.__cause__)]
    if status := next((status for status in statuses if isinstance(status, int) and status), None):
        return 400 <= status < 500 and status not in AGAIN
    if isinstance(error, FileNotFoundError):  # what fsspec makes of every failure to ask for a size over HTTP
        return error.__cause__ is None or str(path).startswith("s3:")
    return isinstance(error, PermissionError) or "Credential" in type(error).__name__


def _system(path: RemotePath) -> Any:
    """The file system of an address, anew in every process: fsspec keeps one a process."""
    scheme = str(path).split(":", 1)[0]
    try:
        fsspec = importlib.import_module("fsspec")
        if scheme == "s3":
            return fsspec.filesystem("s3")
        aiohttp = importlib.import_module("aiohttp")
    except ImportError as error:
        raise InputError(f"shards behind {scheme}:// need the extra remote: pip install 'channelvq[remote]'") from error
    patience = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
    return fsspec.filesystem(scheme, client_kwargs={"timeout": patience, "trust_env": True})


def fetch(path: RemotePath, place: Path) -> None:
    """Write a whole file to `place`; InputError where there is none."""
    state = state_of(path)
    if state is None:
        raise InputError(f"{str(path)!r}: no such file")
    _download(path, state, place)


# The cache


def room() -> int:
    """Bytes that copies may take."""
    given = os.environ.get(ROOM, "")
    try:
        gigabytes = float(given or DEFAULT_ROOM)
        if not 0 <= gigabytes < 1e9:
            raise ValueError
    except ValueError:
        raise InputError(f"{ROOM}={given!r}: expected how many gigabytes copies may take, such as 50") from None
    return int(gigabytes * 1e9)


@contextmanager
def local_copy(path: RemotePath, state: Stamp) -> Iterator[Path]:
    """A whole copy on this machine, which nobody gives up meanwhile; kept afterwards where there is room for it."""
    place, most = _place(path, state), room()
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock(place)):  # another process that wants the same waits for it
        try:
            if not (place.exists() and place.stat().st_size == state.size):
                _make_room(place, state.size, most)
                _download(path, state, place)
            os.utime(place)
            yield place
        finally:
            if state.size > most:
                place.unlink(missing_ok=True)


def _place(path: RemotePath, state: Stamp) -> Path:
    digest = sha256(f"{path}\n{state.size} {state.changed_ns}".encode()).hexdigest()[:24]
    return cache_root() / "remote" / f"{digest}.tar"


def _lock(copy: Path) -> Path:
    return copy.with_name(f"{copy.name.split('.')[0]}.lock")


def _download(path: RemotePath, state: Stamp, place: Path) -> None:
    part = place.with_name(f"{place.name}.part")
    with part.open("ab") as file:
        if file.tell() > state.size:  # of nothing that was written here
            file.truncate(0)
        while (there := file.tell()) < state.size:
            file.write(_range(path, there, min(PIECE, state.size - there)))
            file.flush()  # what is lost with a process is asked for again
    os.replace(part, place)


def _make_room(place: Path, size: int, most: int) -> None:
    """Give up the copies that were not used for longest, until `size` bytes more fit; never one that is in use."""
    copies = []
    for copy in place.parent.glob("*.tar*"):
        with suppress(OSError):
            copies.append((copy.stat().st_mtime, copy.stat().st_size, copy))
    taken = sum(copied for _, copied, _ in copies)
    for _, copied, copy in sorted(copies):
        if taken + size <= most:
            return
        if not copy.name.startswith(place.name):
            with suppress(OSError, Timeout), FileLock(_lock(copy), timeout=0):
                copy.unlink()
                taken -= copied
