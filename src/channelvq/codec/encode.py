"""Pictures -> bytes.

images --tokenizer--> ids (B, K) --code model--> levels --counts, range coder--> stream, behind a header
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor

from channelvq.car.data import tokenizer_digest
from channelvq.car.model import CAR
from channelvq.checks import check_whole_number
from channelvq.codec.car_scores import CARScores, CARWalk
from channelvq.codec.code_model import CHECKS, CodeModel, captions_of, check_written, checksum, code_model
from channelvq.codec.container import MOST_PIXELS, TOKENIZER_DIGEST, Caption, Header
from channelvq.codec.exact import in_float64
from channelvq.codec.levels import counts_of, levels_of
from channelvq.codec.stream import Writer
from channelvq.errors import InputError
from channelvq.evaluate.metrics import psnr as measure_psnr
from channelvq.images import ImageInput, images_to_list, to_uint8
from channelvq.images.geometry import check_size
from channelvq.nn.modes import CHUNK_ROWS
from channelvq.refine import refine_ids
from channelvq.tokenizer import CVQTokenizer

CHUNK_TOKENS = 16


def compress(
    images: ImageInput | Sequence[ImageInput],
    tokenizer: CVQTokenizer,
    *,
    num_tokens: int | None = None,
    num_bytes: int | None = None,
    psnr: float | None = None,
    effort: int = 0,
    car: CAR | CARScores | None = None,
    captions: Sequence[str] | None = None,
    store_captions: bool = True,
    chunk_tokens: int | None = None,
) -> list[bytes]:
    """A .cvq file for each image; images: all that `CVQTokenizer.tokenize` takes, as that takes it: cropped to the
    tokenizer's size, or with a resampler whole, at the nearest size that it works at, which the file names.

    Of the tokens it holds the first num_tokens, or as many as make a file of at most num_bytes, or the fewest that give
    `psnr` in dB against the image as the tokenizer sees it (all where none do). effort: steps of `refine_ids`, which
    looks for as many ids that restore more; not together with num_bytes or psnr. The rest: see `compress_ids`.
    """
    if sum(limit is not None for limit in (num_tokens, num_bytes, psnr)) > 1:
        raise InputError("compress: give one of num_tokens, num_bytes and psnr, not several")
    if effort and (num_bytes is not None or psnr is not None):
        raise InputError("compress: effort searches ids for a number of tokens; give num_tokens, not num_bytes or psnr")
    most = tokenizer.num_tokens if num_tokens is None else num_tokens
    most = check_whole_number("num_tokens", most, 1, tokenizer.num_tokens)
    shown = images_to_list(images, tokenizer.config.read_at)
    ids = refine_ids(tokenizer, shown, steps=effort, num_tokens=most) if effort else tokenizer.tokenize(shown)[:, :most]
    return compress_ids(
        ids, tokenizer, lengths=None if psnr is None else lengths_for(psnr, ids, shown, tokenizer),
        sizes=[(x.shape[1], x.shape[2]) for x in shown],
        num_bytes=num_bytes, car=car, captions=captions, store_captions=store_captions, chunk_tokens=chunk_tokens,
    )  # fmt: skip


def lengths_for(
    psnr: float, ids: Int64[Tensor, "B k"], images: Sequence[Float32[Tensor, "3 _ _"]], tokenizer: CVQTokenizer
) -> list[int]:
    """The fewest first tokens of each image that give `psnr` in dB, or all of them; images in [-1, 1], as encoded."""
    if not isinstance(psnr, int | float) or not 0 < psnr < 100:
        raise InputError(f"psnr: expected dB in 0..100, got {psnr!r}")
    lengths, reader = [ids.shape[1]] * len(ids), in_float64(tokenizer)  # the pictures that a reader gets
    for size in dict.fromkeys(image.shape for image in images):
        alike = [i for i, image in enumerate(images) if image.shape == size]
        pixels, of_these = to_uint8(torch.stack([images[i] for i in alike])).cpu(), ids[alike]
        for k in reversed(range(1, ids.shape[1] + 1)):
            restored = to_uint8(reader.detokenize(of_these[:, :k], "tensor", size=(size[1], size[2]))).cpu()
            for i, good in zip(alike, (measure_psnr(restored, pixels) >= psnr).tolist(), strict=True):
                lengths[i] = k if good else lengths[i]
    return lengths


def compress_ids(
    ids: Int64[Tensor, "B k"],
    tokenizer: CVQTokenizer,
    *,
    lengths: Sequence[int] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    num_bytes: int | None = None,
    car: CAR | CARScores | None = None,
    captions: Sequence[str] | None = None,
    store_captions: bool = True,
    chunk_tokens: int | None = None,
) -> list[bytes]:
    """A .cvq file for the first k tokens of each image.

    lengths: of these the first so many of each. sizes: (height, width) of the pictures, each one that the tokenizer
    works at; None: the home size. num_bytes: as many as make a file of at most so many bytes.

    car: codes by a generator's scores, not by the tokenizer's tables: fewer bytes and much slower; of the same image
    tokenizer. captions: what it is told, one for each image. store_captions: False leaves them out of the files; then
    who reads them has to know them. chunk_tokens: tokens to a checksum and an entry of the index; default 16,
    or all of a tokenizer that has fewer.
    Raises InputError for ids or captions that do not fit, and where a generator's scores cannot be made safe.
    """
    ids = tokenizer.check_ids(ids).cpu()
    if chunk_tokens is None:
        chunk_tokens = min(CHUNK_TOKENS, tokenizer.num_tokens)
    chunk_tokens = check_whole_number("chunk_tokens", chunk_tokens, 1, tokenizer.num_tokens)
    texts = captions_of(captions, len(ids), car is not None)
    lengths = [ids.shape[1]] * len(ids) if lengths is None else [min(n, ids.shape[1]) for n in lengths]
    model, owner = code_model(tokenizer, car), bytes.fromhex(tokenizer_digest(tokenizer))[:TOKENIZER_DIGEST]
    check_written(model, ids.shape[1])
    shown, files = checked_sizes(sizes, len(ids), tokenizer), list[bytes]()
    for start in range(0, len(ids), CHUNK_ROWS):
        rows, told = ids[start : start + CHUNK_ROWS], texts[start : start + CHUNK_ROWS]
        counted, sized = lengths[start : start + CHUNK_ROWS], shown[start : start + CHUNK_ROWS]
        coded = zip(rows.tolist(), counted, sized, told, _all_levels(model, rows, told), strict=True)
        for row, length, size, text, (levels, shift) in coded:
            caption: Caption = "none" if not text else "stored" if store_captions else "needed"
            header = Header(
                model.kind, owner, model.digest, *size, length, chunk_tokens, (), shift, caption,
                text if caption == "stored" else "",
            )  # fmt: skip
            files.append(_write(header, row, levels) if num_bytes is None else _fit(header, row, levels, num_bytes))
    return files


def checked_sizes(
    sizes: Sequence[tuple[int, int]] | None, count: int, tokenizer: CVQTokenizer
) -> list[tuple[int, int]]:
    """A (height, width) for each picture; InputError for another number of them, or one that is not worked at."""
    if sizes is None:
        return [(tokenizer.image_size, tokenizer.image_size)] * count
    pairs = [check_size(size) for size in sizes]
    if len(pairs) != count:
        raise InputError(f"sizes: {len(pairs)} for {count} pictures; give one for each, (height, width)")
    for pair in pairs:
        if max(pair) > MOST_PIXELS:
            raise InputError(f"sizes: {pair} is more than a file can say, at most {MOST_PIXELS} a side")
        if pair != (working := tokenizer.config.working_size(pair)):
            raise InputError(f"sizes: {pair} is none that the tokenizer works at, the nearest is {working}")
    return pairs


def _all_levels(
    model: CodeModel, ids: Int64[Tensor, "B k"], texts: list[str]
) -> Iterator[tuple[Int32[np.ndarray, "k N"], int]]:
    """Levels of all tokens of each picture, and the shift that they were rounded with."""
    walk = model.start(texts)
    prefixes = [ids[:, :k] for k in range(ids.shape[1])]
    if not isinstance(walk, CARWalk):
        levels = np.stack([walk.levels(prefix, [0] * len(ids)) for prefix in prefixes], axis=1)
        yield from ((rows, 0) for rows in levels)
        return
    fine = np.stack([walk.fine(prefix) for prefix in prefixes], axis=1)
    for scores, safe in zip(fine, walk.safe, strict=True):
        if not safe.any():
            raise InputError(
                "a picture's scores lie too close to every boundary to be the same on other machines; "
                "write it with the static tables"
            )
        shift = int(safe.argmax())
        yield levels_of(scores, shift), shift


def _fit(header: Header, ids: list[int], levels: Int32[np.ndarray, "K N"], num_bytes: int) -> bytes:
    """The file of the most tokens that is no longer than num_bytes; InputError where one of one token is."""
    best, low, high = _write(replace(header, num_tokens=1), ids, levels), 1, header.num_tokens
    if len(best) > num_bytes:
        raise InputError(f"num_bytes={num_bytes}: the smallest file, of one token, takes {len(best)} bytes")
    while low < high:
        middle = (low + high + 1) // 2
        file = _write(replace(header, num_tokens=middle), ids, levels)
        if len(file) <= num_bytes:
            best, low = file, middle
        else:
            high = middle - 1
    return best


def _write(header: Header, ids: list[int], levels: Int32[np.ndarray, "K N"]) -> bytes:
    writer, marks = Writer(), list[int]()
    for k, (token, row) in enumerate(zip(ids[: header.num_tokens], levels, strict=False), start=1):
        writer.write(token, counts_of(row))
        if k % header.chunk_tokens == 0 or k == header.num_tokens:
            writer.write(checksum(ids[:k]), CHECKS)
            marks.append(k + len(marks) + 1)
    stream, ends = writer.finish(marks)
    return replace(header, ends=tuple(ends)).write() + stream
