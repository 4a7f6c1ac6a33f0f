"""The photographs that bundled weights may be trained on, one row of photos.csv each.

Splits are fixed by hand, not by hash: there are few photographs, and the held-out ones have to be real photographs
of several kinds. Only CC0, CC-BY and public-domain works are listed; share-alike ones in the same archives are not. Of
palapeli-data the archive's own puzzle files call three public domain; the others in it are under the GFDL.
"""

import csv
from dataclasses import dataclass
from importlib import resources

from pydantic import TypeAdapter

from channelvq.data.split import Split


@dataclass(frozen=True)
class Photo:
    """One photograph: `file` is its name in its archive, `sha256` of that file, `licence` an SPDX identifier."""

    archive: str
    file: str
    split: Split
    licence: str
    attribution: str
    sha256: str

    @property
    def name(self) -> str:
        """The file name without its ending: the key of every crop of this photograph."""
        return self.file.rsplit(".", 1)[0]


_TABLE = (resources.files("channelvq") / "data/fetched/photos.csv").read_text(encoding="utf-8")
PHOTOS = TypeAdapter(tuple[Photo, ...]).validate_python(tuple(csv.DictReader(_TABLE.splitlines())))
