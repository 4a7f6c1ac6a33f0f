"""Which images a folder or a manifest names, and their captions: read before any image is."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, get_args, overload

import numpy as np

from channelvq.data.split import Split, assign_split
from channelvq.errors import InputError
from channelvq.files import parse_json
from channelvq.images import find_images


class Stamp(NamedTuple):
    """What tells one state of a file from another."""

    size: int
    changed_ns: int


@dataclass(frozen=True)
class Entry:
    """One image file and its name in the data set; text None: in the .txt file beside it; split None: by the key."""

    path: Path
    key: str
    text: str | None = None
    split: Split | None = None

    def caption(self) -> str:
        """The caption, "" where there is none; InputError where its file is not UTF-8."""
        if self.text is not None:
            return self.text
        path = self.path.with_suffix(".txt")
        return read_text(path).strip() if path.is_file() else ""

    def split_by(self, validation: float, test: float) -> Split:
        """Its split: the one that is given, else that of its key by these shares."""
        return self.split or assign_split(self.key, validation, test)

    def stamps(self) -> list[Stamp | None]:
        """Size and time of change of the image, and of the caption's file where that may be one."""
        return [stamp(self.path), *([stamp(self.path.with_suffix(".txt"))] if self.text is None else [])]


class Entries(Sequence[Entry]):
    """Entries in two arrays, however many they are; each is made when it is asked for.

    Workers are forks: a list of 300,000 objects, whose counts of references change when they are read, would be copied
    into the memory of each of them page by page.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        rows = [json.dumps([str(e.path), e.key, e.text, e.split]).encode() for e in entries]
        self._ends = np.cumsum([0, *map(len, rows)])
        self._bytes = np.frombuffer(b"".join(rows), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        path, *rest = json.loads(self._bytes[self._ends[i] : self._ends[i + 1]].tobytes())
        return Entry(Path(path), *rest)


def stamp(file: Path | int) -> Stamp | None:
    """Size and time of change of a file, by its path or as it was opened; None where there is none."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


def folder_entries(root: str | Path) -> list[Entry]:
    """The images of a folder and its subfolders in the order of their paths; InputError where there is none."""
    paths = find_images(root)
    if not paths:
        raise InputError(f"image folder {str(root)!r}: no image file in it or below (.jpg, .png, .webp, ...)")
    return [Entry(path, path.relative_to(root).as_posix()) for path in paths]


def manifest_entries(path: str | Path) -> list[Entry]:
    """The images that a .jsonl or .csv file lists, in its order; InputError with the line of what cannot be used."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"manifest {str(path)!r}: it is a folder, which the kind 'folder' reads")
    rows = {".jsonl": _jsonl_rows, ".csv": _csv_rows}.get(path.suffix.lower())
    if rows is None and not path.exists():  # perhaps it was to be a folder
        raise InputError(f"{str(path)!r}: no such file or folder")
    if rows is None:
        raise InputError(f"manifest {str(path)!r}: expected a .jsonl or .csv file")
    return [_entry(row, path, line) for line, row in rows(path)]


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, InputError naming it where that cannot be had."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{str(path)!r}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not UTF-8 text ({error}); save it as UTF-8") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for line, content in enumerate(read_text(path).split("\n"), start=1):
        if content.strip():
            try:
                yield line, parse_json(content)
            except ValueError as error:
                raise InputError(f"manifest {str(path)!r}, line {line}: not JSON ({error})") from error


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(StringIO(read_text(path)), strict=True)
    try:
        for row in reader:
            if None in row:
                raise InputError(
                    f"manifest {str(path)!r}, line {reader.line_num}: more fields than the header names; "
                    "put a text with a comma in double quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"manifest {str(path)!r}, line {reader.reader.line_num}: {error}") from error


def _entry(row: Any, manifest: Path, line: int) -> Entry:
    where = f"manifest {str(manifest)!r}, line {line}"
    if not isinstance(row, dict) or not isinstance(row.get("image"), str) or not row["image"]:
        raise InputError(f"{where}: expected a field 'image' with the path of an image, got {row!r}")
    text, split = row.get("text"), row.get("split") or None
    if not isinstance(text, str | None):
        raise InputError(f"{where}: field 'text' is {text!r}, expected a string")
    if split is not None and split not in get_args(Split):
        raise InputError(f"{where}: field 'split' is {split!r}, expected train, validation, test or nothing")
    return Entry(manifest.parent / row["image"], row["image"], text, split)
