"""Ids of images as a JSON file: what `cvq tokenize` writes and `cvq detokenize` reads."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.files import parse_json
from channelvq.pretrained import weights_sha256
from channelvq.tokenizer import CVQTokenizer

CHUNKS = 8  # that are decoded, and held as pictures, at a time


@dataclass(frozen=True)
class TokenRow:
    """The ids of one image; image: the name of its file. size: (height, width) to decode it at; None: the home size."""

    image: str
    ids: list[int]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class TokenFile:
    """tokenizer: by what name it was loaded. tokenizer_sha256: of its weights, for a name tells little."""

    tokenizer: str
    tokenizer_sha256: str
    codebook_size: int
    rows: list[TokenRow]


def write_tokens(path: Path, name: str, tokenizer: CVQTokenizer, rows: Iterable[TokenRow]) -> None:
    """Write the ids that `tokenizer`, loaded as `name`, gave."""
    content = {
        "tokenizer": name,
        "tokenizer_sha256": weights_sha256(tokenizer),
        "codebook_size": tokenizer.codebook_size,
        "images": [
            {"image": row.image, "ids": row.ids} | ({"size": list(row.size)} if row.size else {}) for row in rows
        ],
    }
    write_json(path, content)


def read_tokens(path: Path) -> TokenFile:
    """Read what `write_tokens` wrote; InputError that names the first thing that is missing or of another type."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        rows = [
            TokenRow(_entry(row, "image", str, f"images[{i}]"), _ids(row, f"images[{i}]"), _size(row, f"images[{i}]"))
            for i, row in enumerate(_entry(content, "images", list, ""))
        ]
        if not rows:
            raise ValueError("images is empty, there is nothing to decode")
        return TokenFile(
            _entry(content, "tokenizer", str, ""),
            _entry(content, "tokenizer_sha256", str, ""),
            _entry(content, "codebook_size", int, ""),
            rows,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON file that `cvq tokenize` wrote: {error}") from None


def check_fits(file: TokenFile, path: Path, tokenizer: CVQTokenizer, num_tokens: int | None) -> None:
    """Raise InputError unless `tokenizer` gave the ids of the file and each image has `num_tokens` of them or more."""
    if file.codebook_size != tokenizer.codebook_size:
        raise InputError(
            f"{path} holds ids of a codebook of {file.codebook_size} codes, the tokenizer has "
            f"{tokenizer.codebook_size}; give the tokenizer that wrote it with --tokenizer (it was {file.tokenizer!r})"
        )
    own = weights_sha256(tokenizer)
    if file.tokenizer_sha256 != own:
        raise InputError(
            f"{path} was written with other weights (SHA-256 {file.tokenizer_sha256[:12]}..., the tokenizer's are "
            f"{own[:12]}...); give the tokenizer that wrote it with --tokenizer (it was {file.tokenizer!r})"
        )
    most, codes = tokenizer.num_tokens, tokenizer.codebook_size  # asked once: a file may hold a hundred million ids
    fitting: dict[tuple[int, int], tuple[int, int]] = {}
    for row in file.rows:
        if row.size is not None and row.size not in fitting:
            fitting[row.size] = tokenizer.config.working_size(row.size)
        _check_row(row, path, most, codes, num_tokens, fitting)


def decode_rows(
    tokenizer: CVQTokenizer, rows: list[TokenRow], num_tokens: int | None = None
) -> Iterator[tuple[int, Image.Image]]:
    """(number of the row, image) decoded from its first `num_tokens` ids, by rows alike in length and size."""
    alike: dict[tuple[int, tuple[int, int] | None], list[int]] = {}
    for number, row in enumerate(rows):
        alike.setdefault((len(row.ids[:num_tokens]), row.size), []).append(number)
    home = tokenizer.image_size, tokenizer.image_size
    for (length, size), numbers in alike.items():
        at_once = CHUNKS * tokenizer.rows_at_once(size or home)
        for start in range(0, len(numbers), at_once):
            batch = numbers[start : start + at_once]
            images = tokenizer.detokenize(torch.tensor([rows[number].ids[:length] for number in batch]), size=size)
            yield from zip(batch, images, strict=True)


def _check_row(
    row: TokenRow, path: Path, most: int, codes: int, num_tokens: int | None,
    fitting: dict[tuple[int, int], tuple[int, int]],
) -> None:  # fmt: skip
    """InputError for a row; most: tokens of an image. codes: N. fitting: for each size the nearest that does."""
    count = len(row.ids)
    if not 1 <= count <= most:
        raise InputError(f"{path}: image {row.image!r} has {count} ids, expected 1 to {most}")
    if num_tokens is not None and not 1 <= num_tokens <= count:
        raise InputError(f"--num-tokens {num_tokens}: image {row.image!r} has {count} tokens, give 1 to {count}")
    if row.size is not None and (nearest := fitting[row.size]) != row.size:
        raise InputError(
            f"{path}: image {row.image!r} has the size {list(row.size)}, which the tokenizer does not work at; the "
            f"nearest is {list(nearest)}"
        )
    if min(row.ids) < 0 or max(row.ids) >= codes:
        wrong = next(id_ for id_ in row.ids if not 0 <= id_ < codes)
        raise InputError(f"{path}: image {row.image!r} has the id {wrong}, outside 0..{codes - 1}")


def _entry(row: Any, key: str, kind: type, where: str) -> Any:
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        name = f"{where}.{key}" if where else key
        given = "missing" if value is None else f"{value!r:.60}"
        raise ValueError(f"{name} is {given}, it should be of type {kind.__name__}")
    return value


def _ids(row: Any, where: str) -> list[int]:
    ids = _entry(row, "ids", list, where)
    if set(map(type, ids)) - {int}:
        wrong = next(i for i in ids if type(i) is not int)
        raise ValueError(f"{where}.ids holds {wrong!r:.60}, they should be whole numbers")
    return ids


def _size(row: Any, where: str) -> tuple[int, int] | None:
    size = row.get("size")
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"{where}.size is {size!r:.60}, it should be [height, width] in pixels")
    return size[0], size[1]
