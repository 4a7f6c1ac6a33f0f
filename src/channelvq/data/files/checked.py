"""Which image files decode to the end, with the good ones remembered between runs.

A header says nothing about the rest of its file, and a broken file met in the middle of a training ends it. So every
file is decoded once. Those that were good are kept by path, size and time of change in a small file of the user's
cache and not opened on a later start. Bad files are tried again, for what made them bad may be mended.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from channelvq.data.fetched.packages import cache_root
from channelvq.data.files.listing import Stamp, stamp
from channelvq.errors import InputError
from channelvq.files import recall, remember
from channelvq.images import FirstFrameWarning, Skipped, load_image

WORKERS = min(8, os.cpu_count() or 1)  # Pillow decodes outside Python's lock
BLOCK = 4096  # files handed to the workers at a time, so that a million of them need no million of futures


@contextmanager
def decoding() -> Iterator[ThreadPoolExecutor]:
    """Threads that decode images, without a warning for every animation among them."""
    with warnings.catch_warnings(), ThreadPoolExecutor(WORKERS) as pool:
        warnings.simplefilter("ignore", FirstFrameWarning)
        yield pool


def unreadable(paths: Sequence[Path], name: str) -> dict[Path, Skipped]:
    """The files among `paths` that cannot be decoded, each with its reason; name: of the data set, for its memory."""
    memory = _memory_file(name)
    known = _remembered(memory)
    stamps = {path: stamp(path) for path in paths}
    good: dict[str, Stamp] = {}

    # What is known is not opened again: for a million files that alone would take many minutes of every start.
    new = [path for path in paths if stamps[path] is None or known.get(str(path.absolute())) != stamps[path]]

    def check(path: Path) -> Skipped | None:
        try:
            load_image(path)
        except InputError as error:
            return Skipped(path, str(error))
        if (state := stamps[path]) is not None:
            good[str(path.absolute())] = state
        return None

    try:
        with decoding() as pool:
            bad = [
                skipped
                for start in range(0, len(new), BLOCK)
                for skipped in pool.map(check, new[start : start + BLOCK])
                if skipped is not None
            ]
    finally:  # also what an interrupted check has learnt
        if good:
            remember(memory, {"pillow": version("pillow"), "files": known | good})
    return {Path(skipped.path): skipped for skipped in bad}


def _memory_file(name: str) -> Path:
    digest = hashlib.sha256(f"{Path.cwd()}\n{name}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return cache_root() / "checked" / f"{digest}.json"


def _remembered(file: Path) -> dict[str, Stamp]:
    """What is in the memory; nothing if it is missing, broken or of another Pillow."""
    content = recall(file)
    if not isinstance(content, dict) or content.get("pillow") != version("pillow"):
        return {}
    return {path: Stamp(size, time) for path, (size, time) in content["files"].items()}
