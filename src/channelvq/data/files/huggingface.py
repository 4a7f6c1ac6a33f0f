"""Data sets of the library Hugging Face `datasets` as a source; the library is imported only when one is asked for."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT
from channelvq.data.fetched.packages import cache_root
from channelvq.data.files.checked import decoding
from channelvq.data.files.collection import Collection
from channelvq.data.files.listing import stamp
from channelvq.data.options import ImageOptions, SplitOrAll
from channelvq.data.split import Split, assign_split
from channelvq.errors import InputError, reason
from channelvq.files import recall, remember
from channelvq.images import Skipped, load_image

AT_ONCE = 256  # images in memory while they are checked


@dataclass(frozen=True, config=STRICT, kw_only=True)
class HuggingFaceConfig(ImageOptions):
    """The split `split` of a data set of Hugging Face `datasets`: a name on the hub or a folder.

    subset: the data set's own configuration, where it has several. validation_split, test_split: its splits for these,
    where they are given; `split` then has no share of them. caption_column: of texts or of class labels.
    """

    name: str
    kind: Literal["huggingface"] = "huggingface"
    weight: NonNegativeFloat = 1.0
    subset: str | None = None
    split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    image_column: str = "image"
    caption_column: str | None = None

    def build(self, size: int, split: Split) -> "HuggingFaceSource":
        """The source of one split, with images of size x size."""
        rows, share, options = self.place(split, self.split, self.validation_split, self.test_split)
        columns = (self.image_column, self.caption_column)
        return HuggingFaceSource(self.name, rows, size, share, options, subset=self.subset, columns=columns)


class HuggingFaceSource(Collection):
    """The images of one split of a data set, with the texts or the names of the class labels of a column.

    name: on the hub, a folder that `save_to_disk` wrote, or a folder that `load_dataset` reads. rows: which of its own
    splits. columns: of the images, and of the captions if there are any. size, split, options: as for the other
    sources; a sample's key is "<rows>/<row number>", so another order of rows is another split by hash. Every image is
    decoded once, when the source is first made.
    skipped: rows of this split that cannot be used, each with its reason; a SkippedFilesWarning counts them.
    Raises InputError without the library, for what it cannot load, and for columns that are missing or of another kind.
    """

    def __init__(
        self,
        name: str,
        rows: str,
        size: int,
        split: SplitOrAll = "train",
        options: ImageOptions | None = None,
        *,
        subset: str | None = None,
        columns: tuple[str, str | None] = ("image", None),
    ) -> None:
        super().__init__(f"data set {name!r}, split {rows!r}", size, split, options)
        self.rows = rows
        self.image_column, self.caption_column = columns
        self._table, self._classes = _columns(_loaded(name, rows, subset), self.name, *columns)
        shares = self.options.validation, self.options.test
        splits = np.array([assign_split(self._key(row), *shares) for row in range(len(self._table))])
        chosen = self._chosen(len(self._table), lambda split: splits == split).tolist()
        bad = _bad_rows(self._table, f"{name}/{subset}/{rows}", self.image_column)
        self._good = np.array([row for row in chosen if row not in bad], dtype=np.int64)  # no list: see listing.Entries
        self.skipped = [Skipped(Path(name, self._key(row)), bad[row]) for row in chosen if row in bad]
        self._report_skipped(len(self._good))

    def _key(self, row: int) -> str:
        return f"{self.rows}/{row}"

    def __len__(self) -> int:
        return len(self._good)

    def stamp(self) -> str:
        """The fingerprint that the library gives the table."""
        return str(self._table._fingerprint)

    def _read(self, index: int) -> tuple[Image.Image, str, str]:
        number = int(self._good[index])
        row = self._table[number]
        return load_image(_content(row[self.image_column])), self._caption(row), self._key(number)

    def _caption(self, row: dict[str, Any]) -> str:
        caption = row[self.caption_column] if self.caption_column is not None else None
        if caption is None or (self._classes is not None and caption < 0):  # -1 is "not labelled"
            return ""
        return str(caption).strip() if self._classes is None else self._classes[caption].replace("_", " ")


def _library() -> Any:
    try:
        import datasets  # type: ignore[import-not-found]
    except ImportError:
        raise InputError(
            "data of kind 'huggingface' needs the package datasets: pip install 'channelvq[huggingface]'"
        ) from None
    return datasets


def _loaded(name: str, rows: str, subset: str | None) -> Any:
    datasets = _library()
    try:
        if (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file():
            stored = datasets.load_from_disk(name)
            if not isinstance(stored, datasets.DatasetDict):
                return stored  # one split, saved alone
            if rows not in stored:
                raise InputError(f"data set {name!r} has no split {rows!r}, it has {', '.join(stored)}")
            return stored[rows]
        return datasets.load_dataset(name, subset, split=rows)
    except InputError:
        raise
    except Exception as error:  # of many kinds: no network, no such name, split or subset, a broken file
        raise InputError(f"data set {name!r}, split {rows!r} cannot be loaded: {reason(error)}") from error


def _columns(table: Any, shown: str, image: str, caption: str | None) -> tuple[Any, list[str] | None]:
    """The table with these two columns, images as they are stored; and the names of the classes, if it has such."""
    datasets = _library()
    for column in (image, *([caption] if caption is not None else [])):
        if column not in table.features:
            raise InputError(f"{shown}: no column {column!r}, there are {', '.join(table.features)}")
    if not isinstance(table.features[image], datasets.Image):
        raise InputError(f"{shown}: column {image!r} holds {table.features[image]}, expected images")
    classes = None
    if caption is not None:
        kind = table.features[caption]
        classes = kind.names if isinstance(kind, datasets.ClassLabel) else None
        if classes is None and getattr(kind, "dtype", None) not in ("string", "large_string"):
            raise InputError(f"{shown}: column {caption!r} holds {kind}, expected texts or class labels")
    kept = table.select_columns([image] if caption is None else [image, caption])
    return kept.cast_column(image, datasets.Image(decode=False)), classes


def _content(stored: dict[str, Any] | None) -> bytes | Path:
    if stored is None or (stored["bytes"] is None and stored["path"] is None):
        raise InputError("the image is missing")
    return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"])


def _bad_rows(table: Any, name: str, column: str) -> dict[int, str]:
    """Rows whose image cannot be decoded, and why; remembered while the files of the table are the same."""
    files = [(file["filename"], *(stamp(Path(file["filename"])) or ())) for file in table.cache_files]
    settings = json.dumps([name, column, len(table), files, version("pillow")])
    memory = cache_root() / "huggingface" / f"{hashlib.sha256(settings.encode()).hexdigest()[:24]}.json"
    if files and isinstance(known := recall(memory), dict):
        return {int(row): str(reason) for row, reason in known.items()}

    def check(stored: dict[str, Any] | None) -> str | None:
        try:
            load_image(_content(stored))
        except InputError as error:
            return str(error)
        return None

    bad = {}
    with decoding() as pool:
        for start in range(0, len(table), AT_ONCE):
            reasons = pool.map(check, table[start : start + AT_ONCE][column])
            bad |= {row: reason for row, reason in enumerate(reasons, start) if reason is not None}
    remember(memory, bad)
    return bad
