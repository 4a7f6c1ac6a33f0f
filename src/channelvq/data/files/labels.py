"""Captions for folders of classes: `root/<class>/photo.jpg`, as ImageNet and many others are laid out."""

import re
from collections.abc import Callable
from pathlib import Path

from channelvq.data.files.listing import read_text
from channelvq.errors import InputError
from channelvq.files import parse_json

FOLDERS = "folders"


def read_labels(labels: str) -> Callable[[str], str]:
    """Key of an image -> caption, from the first folder of the key; an image outside every folder has caption "".

    labels: "folders", the folder's own name with spaces for _; or a file that names the folders: a JSON object {folder:
    name}, or text with a line "folder name" each. Of several names with commas between, the first is taken
    ("n01440764 tench, Tinca tinca" -> "tench"). The function raises InputError for a folder that the file lacks.
    """
    if labels == FOLDERS:
        return lambda key: _folder(key).replace("_", " ")
    names = _names(Path(labels))

    def caption(key: str) -> str:
        folder = _folder(key)
        if folder and folder not in names:
            raise InputError(f"labels {labels!r}: no name for the folder {folder!r} (of {key!r}); add a line for it")
        return names.get(folder, "")

    return caption


def _folder(key: str) -> str:
    return key.split("/", 1)[0] if "/" in key else ""


def _names(path: Path) -> dict[str, str]:
    text = read_text(path)
    if path.suffix.lower() == ".json":
        try:
            names = parse_json(text)
        except ValueError as error:
            raise InputError(f"labels {str(path)!r}: not JSON ({error})") from None
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise InputError(f"labels {str(path)!r}: expected an object of folder names and texts")
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        pairs = [re.split(r"[\s,]+", line, maxsplit=1) for line in lines]
        if wrong := next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) < 2), None):
            raise InputError(f"labels {str(path)!r}: expected lines of a folder and its name, got {wrong!r}")
        names = dict(pairs)
    return {folder: name.split(",", 1)[0].strip() for folder, name in names.items()}
