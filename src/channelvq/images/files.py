"""Image files in folders: found in a stable order, read with a report, written whole or not at all."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from channelvq.errors import InputError
from channelvq.images.load import WHITE, Color, load_image

# HEIC is listed although Pillow needs a plugin for it: such a photo is then reported as unreadable, not passed over.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif"}
    | {".heic", ".heif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
)


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why."""

    path: Path
    reason: str


def find_images(folder: str | Path) -> list[Path]:
    """Image files (by suffix, see IMAGE_SUFFIXES) in `folder` and below, sorted by relative path.

    Hidden files and folders (a name that starts with a dot) are ignored, linked folders are followed once.
    Raises InputError if `folder` is no folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"image folder {str(folder)!r}: {'it is a file' if root.exists() else 'no such folder'}")
    found: list[Path] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        if os.path.realpath(here) in seen:  # a link back to a folder above, or a second link to the same one
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = (name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES)
        found.extend(Path(here, name) for name in images if not name.startswith("."))
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read image folder {error.filename!r}: {error.strerror}") from error


def read_folder(
    folder: str | Path, *, background: Color = WHITE
) -> tuple[Iterator[tuple[Path, Image.Image]], list[Skipped]]:
    """The images of a folder, one at a time in sorted order, and a list of the files that could not be read.

    The list fills while the images are read and is complete when they end.
    """
    paths, skipped = find_images(folder), []

    def images() -> Iterator[tuple[Path, Image.Image]]:
        for path in paths:
            try:
                image = load_image(path, background=background)
            except InputError as error:
                skipped.append(Skipped(path, str(error)))
            else:
                yield path, image

    return images(), skipped


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write `image` in the format of the path's suffix, whole or not at all: a reader never meets half a file.

    Missing folders are made. Raises InputError for a suffix without a format and a mode the format cannot hold.
    """
    path = Path(path)
    format_name = Image.registered_extensions().get(path.suffix.lower())
    if format_name not in Image.SAVE:
        raise InputError(f"cannot save {str(path)!r}: no image format for {path.suffix!r}; use .png, .jpg or .webp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        image.save(temporary, format_name)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot save {str(path)!r}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
