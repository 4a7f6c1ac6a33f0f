"""Image files as a source: a folder, or a manifest that lists them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT
from channelvq.data.files.checked import unreadable
from channelvq.data.files.collection import Collection
from channelvq.data.files.labels import read_labels
from channelvq.data.files.listing import Entries, Entry, folder_entries, manifest_entries
from channelvq.data.options import ImageOptions, SplitOrAll
from channelvq.data.split import Split
from channelvq.images import load_image


class _FileSource(Collection):
    """Samples from image files; the two public sources differ in where their entries come from.

    Each file is decoded once when the source is made (see data/files/checked.py).
    skipped: files of this split that could not be decoded, each with its reason.
    """

    def __init__(
        self, entries: Sequence[Entry], name: str, size: int, split: SplitOrAll, options: ImageOptions | None
    ) -> None:
        super().__init__(name, size, split, options)
        splits = np.array([entry.split_by(self.options.validation, self.options.test) for entry in entries])
        chosen = [entries[i] for i in self._chosen(len(entries), lambda split: splits == split)]
        bad = unreadable([entry.path for entry in chosen], name)
        self._entries = Entries([entry for entry in chosen if entry.path not in bad])
        self.skipped = [bad[entry.path] for entry in chosen if entry.path in bad]
        self._report_skipped(len(self._entries), stacklevel=4)

    def __len__(self) -> int:
        return len(self._entries)

    def stamp(self) -> str:
        """Digest of the entries, and of their files' sizes and times of change."""
        listed = [[entry.key, entry.text, entry.stamps()] for entry in self._entries]
        return sha256(json.dumps(listed).encode()).hexdigest()

    def _read(self, index: int) -> tuple[Image.Image, str, str]:
        entry = self._entries[index]
        return load_image(entry.path), entry.caption(), entry.key


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FolderConfig(ImageOptions):
    """Every image below the folder `root`.

    root: the folder. validation_root, test_root: folders of these splits, where they are given; `root` then has no
    share of them.
    labels: the first folder below the root names what is shown: "folders", or a file of names (data/files/labels.py).
    """

    root: str
    kind: Literal["folder"] = "folder"
    weight: NonNegativeFloat = 1.0
    validation_root: str | None = None
    test_root: str | None = None
    labels: str | None = None

    def build(self, size: int, split: Split) -> "FolderSource":
        """The source of one split, with images of size x size."""
        root, share, options = self.place(split, self.root, self.validation_root, self.test_root)
        return FolderSource(root, size, share, options, labels=self.labels)


class FolderSource(_FileSource):
    """The images of a folder and its subfolders; text from a .txt file of the same name beside an image.

    root: the folder; hidden files are ignored. size: side of the square samples. split: which share to use, decided by
    the hash of the path relative to `root`, which is a sample's key. labels: captions of folders of classes, see
    data/files/labels.py; then no .txt file is looked for.
    Raises InputError for an empty folder or split, and if no file can be read; warns (SkippedFilesWarning) if only some
    can.
    """

    def __init__(
        self,
        root: str | Path,
        size: int,
        split: SplitOrAll = "train",
        options: ImageOptions | None = None,
        *,
        labels: str | None = None,
    ) -> None:
        entries = folder_entries(root)
        if labels is not None:
            caption = read_labels(labels)
            entries = [replace(entry, text=caption(entry.key)) for entry in entries]
        super().__init__(entries, f"image folder {str(root)!r}", size, split, options)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ManifestConfig(ImageOptions):
    """The images that the .jsonl or .csv file `path` lists; its field `split`, where there is one, decides.

    path: the manifest.
    """

    path: str
    kind: Literal["manifest"] = "manifest"
    weight: NonNegativeFloat = 1.0

    def build(self, size: int, split: Split) -> "ManifestSource":
        """The source of one split, with images of size x size."""
        return ManifestSource(self.path, size, split, self)


class ManifestSource(_FileSource):
    """The images that a manifest lists: .jsonl (an object a line) or .csv (with a header), in the manifest's order.

    Fields: `image`, a path relative to the manifest's folder; `text`, optional (else a .txt file beside the image);
    `split`, optional: train, validation or test (else by the hash of `image`). A sample's key is `image` as written.
    Warnings and errors as for FolderSource; an entry that cannot be used is an InputError with its line.
    """

    def __init__(
        self, path: str | Path, size: int, split: SplitOrAll = "train", options: ImageOptions | None = None
    ) -> None:
        super().__init__(manifest_entries(path), f"manifest {str(path)!r}", size, split, options)
