"""Image files in folders: found in a stable order, read with a report, written completely or not at all."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from channelvq.errors import InputError, first_few
from channelvq.files import is_stream, replace_file
from channelvq.images.geometry import resize, resize_crop
from channelvq.images.load import WHITE, Color, load_image

# HEIC is listed although Pillow needs a plugin for it: such a photo is then reported as unreadable, not passed over.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif"}
    | {".heic", ".heif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
)
# Pictures too, of which Pillow reads none or not all, or which are no photographs.
OTHER_SUFFIXES = frozenset(
    {".svg", ".psd", ".xcf", ".eps", ".ico", ".icns", ".pcx", ".dds", ".exr", ".hdr", ".jxl", ".j2k", ".jpx", ".jpf"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".heics", ".sgi", ".qoi", ".cur", ".xbm"}
)


class OtherFormatsWarning(UserWarning):
    """A folder holds pictures in formats that are not read."""


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why."""

    path: PurePath
    reason: str


def find_images(folder: str | Path) -> list[Path]:
    """Image files (by suffix, see IMAGE_SUFFIXES) in `folder` and below, sorted by relative path.

    Hidden files and folders (a name that starts with a dot) are ignored, linked folders are followed once.
    Raises InputError if `folder` is no folder; warns (OtherFormatsWarning) of pictures in formats that are not read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"image folder {str(folder)!r}: {'it is a file' if root.exists() else 'no such folder'}")
    paths: list[Path] = []
    seen: set[str] = set()
    other: Counter[str] = Counter()
    for here, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        if os.path.realpath(here) in seen:  # a link back to a folder above, or a second link to the same one
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                paths.append(Path(here, name))
            elif suffix in OTHER_SUFFIXES:
                other[suffix] += 1
    if other:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(other.items()))
        text = f"image folder {str(folder)!r}: passed over, of formats that are not read: {listed}; convert them to PNG"
        warnings.warn(text, OtherFormatsWarning, stacklevel=2)
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read image folder {error.filename!r}: {error.strerror}") from error


def read_images(
    paths: Sequence[str | Path],
    *,
    size: int | tuple[int, int] | Callable[[tuple[int, int]], tuple[int, int]],
    background: Color = WHITE,
) -> tuple[Iterator[tuple[Path, Image.Image]], list[Skipped]]:
    """Images of files and folders, one at a time as squares of `size` pixels (`resize_crop`), and what was skipped.

    size: or (height, width), to whose aspect they are cropped; or a function of an image's (height, width) to those
    that it is to have, whole (`resize`).

    An unreadable file of a folder is skipped, one that was named itself is an InputError, which names all such. So are,
    at once, paths that do not exist, and no image file at all.
    """
    sources = [(path, True) if path.is_dir() else (path, False) for path in map(Path, paths)]
    files = [(file, in_folder) for path, in_folder in sources for file in (find_images(path) if in_folder else [path])]
    if gone := [repr(str(file)) for file, in_folder in files if not in_folder and not file.exists()]:
        raise InputError(f"images {first_few(gone)}: no such file or folder; expected an image or a folder of them")
    if not files:
        raise InputError(f"no image file in {', '.join(map(repr, map(str, paths)))} or below (.jpg, .png, .webp, ...)")
    skipped: list[Skipped] = []

    def images() -> Iterator[tuple[Path, Image.Image]]:
        for i, (path, in_folder) in enumerate(files):
            try:
                image = load_image(path, background=background)
            except InputError as error:
                if not in_folder:
                    named = [other for other, of_folder in files[i + 1 :] if not of_folder]
                    raise _unreadable(error, named, len(files)) from error
                skipped.append(Skipped(path, str(error)))
            else:
                if callable(size):
                    yield path, resize(image, size((image.height, image.width)))
                else:
                    yield path, resize_crop(image, size)

    return images(), skipped


def _unreadable(first: InputError, others: Sequence[Path], total: int) -> InputError:
    """Of a file that was named by itself, and of whichever else of those after it cannot be read."""
    reasons = [str(first)]
    for path in others:
        try:
            load_image(path)
        except InputError as error:
            reasons.append(str(error))
    if total == 1:
        return first
    return InputError(f"{len(reasons)} of {total} images cannot be used, leave them out: {first_few(reasons)}")


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write `image` in the format of the path's suffix, whole or not at all: a reader never meets half a file.

    Missing folders are made. Raises InputError for a suffix without a format, a mode the format cannot hold and a place
    that cannot be written.
    """
    path = Path(path)
    format_name = Image.registered_extensions().get(path.suffix.lower())
    if format_name not in Image.SAVE:
        raise InputError(f"cannot save {str(path)!r}: no image format for {path.suffix!r}; use .png, .jpg or .webp")
    if is_stream(path):
        raise InputError(f"cannot save {str(path)!r}: it is a device or a pipe, expected a file; choose another place")
    try:
        replace_file(path, lambda place: image.save(place, format_name))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot save {str(path)!r}: {error}") from error
