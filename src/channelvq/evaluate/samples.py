"""Samples of a generator for a scorer of others: a folder of PNG files, and all of them as the .npz of ADM's evaluator.

The protocol of class-conditional ImageNet (Dhariwal and Nichol 2021, arXiv 2105.05233): 50,000 samples, as many of each
class, against the statistics of the training images. Distances by other protocols are other numbers.
"""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.errors import InputError
from channelvq.evaluate.geneval.drawing import Picture, Progress, check_texts, draw_files
from channelvq.files import replace_file

ARRAY = "arr_0.npy"  # what ADM's evaluator looks for


def read_texts(path: Path) -> list[str]:
    """The lines of a text file, without empty ones; raises InputError where there is none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a text file with a prompt in each line ({error})") from None
    if not (texts := [line for line in lines if line]):
        raise InputError(f"{path}: expected a prompt in each line, the file has none")
    return texts


def draw_samples(
    car: CAR, texts: list[str], count: int, sampling: SamplingSettings, folder: Path, progress: Progress
) -> list[Path]:
    """Draw what the folder lacks of `count` samples; image i is of text i modulo their number, with seed + i.

    Consecutive images are of different texts, so that a scorer that looks at parts of the set sees all of them. Gives
    the files. Raises InputError for a text that is too long, and for a folder that was drawn with something else.
    """
    pictures = [Picture(Path(f"{i:06d}.png"), texts[i % len(texts)], f"prompt {i % len(texts)}") for i in range(count)]
    check_texts(car, pictures[: len(texts)])
    draw_files(car, pictures, sampling, folder, progress)
    return [folder / picture.path for picture in pictures]


def write_npz(files: list[Path], path: Path) -> None:
    """The pictures as one array of uint8 (n, H, W, 3) named arr_0; one at a time, so that memory holds one of them.

    Raises InputError for files that are not pictures of one size.
    """
    replace_file(path, lambda partial: _write_npz(files, partial))


def _write_npz(files: list[Path], path: Path) -> None:
    shape = _pixels(files[0]).shape
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive, archive.open(ARRAY, "w", force_zip64=True) as array:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *shape)}
        np.lib.format.write_array_header_1_0(array, header)
        for file in files:
            pixels = _pixels(file)
            if pixels.shape != shape:
                raise InputError(f"{file}: expected a picture of {shape[1]} x {shape[0]} px, as the first one is")
            array.write(pixels.tobytes())


def _pixels(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise InputError(f"{file}: the picture cannot be read ({error}); remove it, and it is drawn again") from None
