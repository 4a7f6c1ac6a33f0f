"""Image files as a source: a folder, or a manifest that lists them."""

import csv
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image, ImageOps

from channelvq.data.checked import unreadable
from channelvq.data.source import Sample
from channelvq.data.split import Split, assign_split
from channelvq.errors import InputError
from channelvq.images import Skipped, find_images, load_image, random_crop, resize_crop, to_tensor

SplitOrAll = Split | Literal["all"]
Crop = Literal["center", "random"]


class EmptySplitError(InputError):
    """A data set has no image in the split asked for; problem: what is wrong, without the advice of the message."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; give larger fractions validation= and test=, or use split='all'")
        self.problem = problem

    def __reduce__(self) -> tuple[type["EmptySplitError"], tuple[str]]:
        return type(self), (self.problem,)


class SkippedFilesWarning(UserWarning):
    """Some files of a data set cannot be read; the source goes on without them and lists them in `skipped`."""


@dataclass(frozen=True)
class _Entry:
    path: Path
    key: str
    text: str | None = None  # None: in the .txt file beside the image, if there is one
    split: Split | None = None  # None: by the key


class _FileSource:
    """Samples from image files; the two public sources differ in where their entries come from.

    Each file is decoded once when the source is made (see data/checked.py).
    skipped: files of this split that could not be decoded, each with its reason.
    """

    skipped: list[Skipped]

    def __init__(
        self,
        entries: Iterable[_Entry],
        name: str,
        size: int,
        split: SplitOrAll,
        *,
        crop: Crop,
        min_side: int,
        flip: bool,
        validation: float,
        test: float,
    ) -> None:
        _check_options(size, split, crop, min_side)
        self.size, self.crop, self.min_side, self.flip = size, crop, min_side, flip
        found = [(entry, entry.split or assign_split(entry.key, validation, test)) for entry in entries]
        wanted = [entry for entry, its_split in found if split in ("all", its_split)]
        if not wanted:
            raise _nothing(name, split, Counter(its_split for _, its_split in found))
        bad = unreadable([entry.path for entry in wanted], name)
        self._entries = [entry for entry in wanted if entry.path not in bad]
        self.skipped = [bad[entry.path] for entry in wanted if entry.path in bad]
        if not self._entries:
            raise InputError(f"{name}: none of {len(wanted)} images can be read; the first: {self.skipped[0].reason}")
        if self.skipped:
            text = f"{name}: {len(self.skipped)} of {len(wanted)} images skipped; the first: {self.skipped[0].reason}"
            warnings.warn(text, SkippedFilesWarning, stacklevel=3)

    def __len__(self) -> int:
        return len(self._entries)

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """Sample `index` with an image (3, size, size); InputError naming the file if it broke since it was checked."""
        if not 0 <= index < len(self):
            raise InputError(f"sample {index} of a source with {len(self)} samples")
        entry = self._entries[index]
        image = self._cropped(load_image(entry.path), generator)
        if self.flip and float(torch.rand((), generator=generator, device=generator.device)) < 0.5:
            image = ImageOps.mirror(image)
        text = _sidecar_text(entry.path) if entry.text is None else entry.text
        return Sample(image=to_tensor(image), text=text, key=entry.key)

    def _cropped(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        if self.crop == "center":
            return resize_crop(image, self.size)
        return random_crop(image, self.size, self.min_side, generator)


class FolderSource(_FileSource):
    """The images of a folder and its subfolders; text from a .txt file of the same name beside an image.

    root: the folder; hidden files are ignored. size: side of the square samples. split: which share to use, decided by
    the hash of the path relative to `root` (shares: `validation`, `test`, the rest trains). crop: "center", the largest
    centred square, or "random", a random square of at least `min_side` pixels. flip: mirror half of the samples, which
    makes captions about left and right wrong. A sample's key is its path relative to `root`.
    Raises InputError for an empty folder or split, and if no file can be read; warns (SkippedFilesWarning) if only some
    can.
    """

    def __init__(
        self,
        root: str | Path,
        size: int,
        split: SplitOrAll = "train",
        *,
        crop: Crop = "center",
        min_side: int = 256,
        flip: bool = False,
        validation: float = 0.05,
        test: float = 0.10,
    ) -> None:
        paths = find_images(root)
        if not paths:
            raise InputError(f"image folder {str(root)!r}: no image file in it or below (.jpg, .png, .webp, ...)")
        super().__init__(
            [_Entry(path, path.relative_to(root).as_posix()) for path in paths],
            f"image folder {str(root)!r}",
            size,
            split,
            crop=crop,
            min_side=min_side,
            flip=flip,
            validation=validation,
            test=test,
        )


class ManifestSource(_FileSource):
    """The images that a manifest lists: .jsonl (an object a line) or .csv (with a header), in the manifest's order.

    Fields: `image`, a path relative to the manifest's folder; `text`, optional (else a .txt file beside the image);
    `split`, optional: train, validation or test (else by the hash of `image`). A sample's key is `image` as written.
    Options, warnings and errors as for FolderSource; an entry that cannot be used is an InputError with its line.
    """

    def __init__(
        self,
        path: str | Path,
        size: int,
        split: SplitOrAll = "train",
        *,
        crop: Crop = "center",
        min_side: int = 256,
        flip: bool = False,
        validation: float = 0.05,
        test: float = 0.10,
    ) -> None:
        super().__init__(
            _read_manifest(Path(path)),
            f"manifest {str(path)!r}",
            size,
            split,
            crop=crop,
            min_side=min_side,
            flip=flip,
            validation=validation,
            test=test,
        )


def _check_options(size: int, split: str, crop: str, min_side: int) -> None:
    splits = ("train", "validation", "test", "all")
    if split not in splits:
        raise InputError(f"split={split!r}: expected one of {', '.join(splits)}")
    if crop not in get_args(Crop):
        raise InputError(f"crop={crop!r}: expected one of {', '.join(get_args(Crop))}")
    if size < 1 or min_side < 1:
        raise InputError(f"size={size}, min_side={min_side}: expected at least 1 pixel each")


def _nothing(name: str, split: str, counts: Counter[str]) -> InputError:
    if not counts:
        return InputError(f"{name}: it lists no image")
    have = ", ".join(f"{counts[each]} in {each}" for each in get_args(Split))
    return EmptySplitError(f"{name}: no image in split {split!r} ({have})")


def _sidecar_text(image: Path) -> str:
    path = image.with_suffix(".txt")
    return _read_text(path).strip() if path.is_file() else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{str(path)!r}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not UTF-8 text ({error}); save it as UTF-8") from error


def _read_manifest(path: Path) -> list[_Entry]:
    rows = {".jsonl": _jsonl_rows, ".csv": _csv_rows}.get(path.suffix.lower())
    if rows is None:
        raise InputError(f"manifest {str(path)!r}: expected a .jsonl or .csv file")
    return [_entry(row, path, line) for line, row in rows(path)]


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for line, content in enumerate(_read_text(path).split("\n"), start=1):
        if content.strip():
            try:
                yield line, json.loads(content)
            except json.JSONDecodeError as error:
                raise InputError(f"manifest {str(path)!r}, line {line}: not JSON ({error})") from error


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(StringIO(_read_text(path)), strict=True)
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


def _entry(row: Any, manifest: Path, line: int) -> _Entry:
    where = f"manifest {str(manifest)!r}, line {line}"
    if not isinstance(row, dict) or not isinstance(row.get("image"), str) or not row["image"]:
        raise InputError(f"{where}: expected a field 'image' with the path of an image, got {row!r}")
    text, split = row.get("text"), row.get("split") or None
    if not isinstance(text, str | None):
        raise InputError(f"{where}: field 'text' is {text!r}, expected a string")
    if split is not None and split not in get_args(Split):
        raise InputError(f"{where}: field 'split' is {split!r}, expected train, validation, test or nothing")
    return _Entry(manifest.parent / row["image"], row["image"], text, split)
