"""Many images of a generator: in fixed chunks, each image with a seed of its own, and only what is not there yet."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from channelvq.car.model import CAR
from channelvq.car.sampling import Sampler
from channelvq.car.settings import SamplingSettings
from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.files import parse_json
from channelvq.images import save_image, to_pil, to_uint8
from channelvq.pretrained import weights_sha256

CHUNK = 64  # images at a time; fixed, since without padding the bits of an image depend on its neighbours
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Picture:
    """A file to draw, with `copies` images of one text side by side, two a row. where: of the text, for errors."""

    path: Path
    text: str
    where: str
    copies: int = 1


def draw(car: CAR, texts: Sequence[str], sampling: SamplingSettings, progress: Progress) -> UInt8[Tensor, "n 3 h w"]:
    """An image for each text; image i of all has seed + i. progress is told (done, of how many)."""
    parts = []
    for start in range(0, len(texts), CHUNK):
        parts.append(draw_part(car, texts[start : start + CHUNK], sampling, start))
        progress(min(start + CHUNK, len(texts)), len(texts))
    return torch.cat(parts)


def draw_part(car: CAR, texts: Sequence[str], sampling: SamplingSettings, first: int) -> UInt8[Tensor, "n 3 h w"]:
    """The images number first, first + 1, ... of a set, for their texts."""
    ids = Sampler(car, replace(sampling, seed=sampling.seed + first), exact=False).generate(texts).ids
    return to_uint8(car.tokenizer.detokenize(ids, output="tensor", exact=False)).cpu()


def check_texts(car: CAR, pictures: Sequence[Picture]) -> None:
    """InputError that says where a text is that the generator cannot take, before any is drawn."""
    for picture in pictures:
        try:
            car.text.encode(picture.text, car.config.max_text_tokens)
        except InputError as error:
            raise InputError(f"{picture.where}: {str(error).removeprefix('prompt 0 ')}") from None


def draw_files(
    car: CAR, pictures: Sequence[Picture], sampling: SamplingSettings, folder: Path, progress: Progress
) -> int:
    """Draw the pictures that `folder` lacks; gives how many those were.

    Beside the folder, in FOLDER.json, stands what they were drawn with: another generator or other settings for a
    folder that has pictures is an InputError, and so are pictures without that file, or one that holds something else.
    """
    _check_settings(car, pictures, sampling, folder)
    numbers = [i for i, picture in enumerate(pictures) for _ in range(picture.copies)]
    total = sum(not (folder / picture.path).is_file() for picture in pictures)
    done = 0
    for part in _chunks(pictures):
        missing = [i for i in part if not (folder / pictures[i].path).is_file()]
        if not missing:
            continue
        first = numbers.index(part.start)
        images = draw_part(car, [pictures[i].text for i in part for _ in range(pictures[i].copies)], sampling, first)
        pieces = images.split([pictures[i].copies for i in part])
        for i in missing:
            save_image(tiled(to_pil(pieces[i - part.start])), folder / pictures[i].path)
        done += len(missing)
        progress(done, total)
    return done


def _chunks(pictures: Sequence[Picture]) -> Iterator[range]:
    """Consecutive pictures of about CHUNK images; the same whatever is there already."""
    start = count = 0
    for i, picture in enumerate(pictures):
        if count and count + picture.copies > CHUNK:
            yield range(start, i)
            start, count = i, 0
        count += picture.copies
    yield range(start, len(pictures))


def _check_settings(car: CAR, pictures: Sequence[Picture], sampling: SamplingSettings, folder: Path) -> None:
    texts = [[picture.path.as_posix(), picture.text, picture.copies] for picture in pictures]
    made: dict[str, Any] = {"generator_sha256": weights_sha256(car), **asdict(sampling), "pictures": texts}
    path = settings_path(folder)
    before = _read_settings(path) if path.is_file() else None
    if not any((folder / picture.path).is_file() for picture in pictures):
        write_json(path, made)
        return
    if before is None:
        raise InputError(
            f"{folder}: it holds images, but {path.name} beside it, which says what they were drawn with, is missing; "
            "give another --output"
        )
    if other := sorted(key for key in made if before.get(key) != made[key]):
        raise InputError(
            f"{folder}: it holds images that were drawn with other {', '.join(other)}; give another --output"
        )


def _read_settings(path: Path) -> dict[str, Any]:
    """What `_check_settings` wrote; raises InputError for anything else, which is not ours to overwrite."""
    try:
        settings = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: the file is damaged ({error}); remove it or give another --output") from None
    if not isinstance(settings, dict) or not {"generator_sha256", "pictures"} <= settings.keys():
        raise InputError(
            f"{path}: expected what the images in {path.stem}/ were drawn with, but the file holds something else; "
            "move it or give another --output"
        )
    return settings


def settings_path(folder: Path) -> Path:
    """Where it is kept what a folder of images was drawn with: beside it, since scorers take all that is in it.

    Raises InputError for the root of a file system, which nothing is beside.
    """
    folder = folder.absolute()
    if not folder.name:
        raise InputError(f"{folder}: give a folder that has a name")
    return folder.with_name(f"{folder.name}.json")


def tiled(images: Sequence[Image.Image]) -> Image.Image:
    """One image, or several without gaps, two a row."""
    if len(images) == 1:
        return images[0]
    width, height = images[0].size
    sheet = Image.new("RGB", (2 * width, (len(images) + 1) // 2 * height))
    for i, image in enumerate(images):
        sheet.paste(image, (i % 2 * width, i // 2 * height))
    return sheet
