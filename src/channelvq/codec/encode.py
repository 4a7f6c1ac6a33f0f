"""Pictures -> bytes.

images --tokenizer--> ids (B, K) --code model--> levels --counts, range coder--> stream, behind a header
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int32, Int64
from torch import Tensor

from channelvq.car.data import tokenizer_digest
from channelvq.car.model import CAR
from channelvq.checks import check_whole_number
from channelvq.codec.car_scores import CARScores, CARWalk
from channelvq.codec.code_model import CHECKS, CodeModel, captions_of, checksum, code_model
from channelvq.codec.container import TOKENIZER_DIGEST, Caption, Header
from channelvq.codec.levels import counts_of, levels_of
from channelvq.codec.stream import Writer
from channelvq.errors import InputError
from channelvq.images import ImageInput
from channelvq.nn.modes import CHUNK_ROWS
from channelvq.tokenizer import CVQTokenizer

CHUNK_TOKENS = 16


def compress(
    images: ImageInput | Sequence[ImageInput],
    tokenizer: CVQTokenizer,
    *,
    num_tokens: int | None = None,
    car: CAR | CARScores | None = None,
    captions: Sequence[str] | None = None,
    store_captions: bool = True,
    chunk_tokens: int = CHUNK_TOKENS,
) -> list[bytes]:
    """A .cvq file for each image; images: all that `CVQTokenizer.tokenize` takes. The rest: see `compress_ids`."""
    ids = tokenizer.tokenize(images)
    return compress_ids(
        ids if num_tokens is None else ids[:, : check_whole_number("num_tokens", num_tokens, 1, ids.shape[1])],
        tokenizer, car=car, captions=captions, store_captions=store_captions, chunk_tokens=chunk_tokens,
    )  # fmt: skip


def compress_ids(
    ids: Int64[Tensor, "B k"],
    tokenizer: CVQTokenizer,
    *,
    car: CAR | CARScores | None = None,
    captions: Sequence[str] | None = None,
    store_captions: bool = True,
    chunk_tokens: int = CHUNK_TOKENS,
) -> list[bytes]:
    """A .cvq file for the first k tokens of each image.

    car: codes by a generator's scores, not by the tokenizer's tables: fewer bytes and much slower; of the same image
    tokenizer. captions: what it is told, one for each image. store_captions: False leaves them out of the files; then
    who reads them has to know them. chunk_tokens: tokens to a checksum and an entry of the index.
    Raises InputError for ids or captions that do not fit, and where a generator's scores cannot be made safe.
    """
    ids = tokenizer.check_ids(ids).cpu()
    chunk_tokens = check_whole_number("chunk_tokens", chunk_tokens, 1, tokenizer.num_tokens)
    texts = captions_of(captions, len(ids), car is not None)
    model, owner = code_model(tokenizer, car), bytes.fromhex(tokenizer_digest(tokenizer))[:TOKENIZER_DIGEST]
    size, files = tokenizer.image_size, list[bytes]()
    for start in range(0, len(ids), CHUNK_ROWS):
        rows, told = ids[start : start + CHUNK_ROWS], texts[start : start + CHUNK_ROWS]
        for row, text, (levels, shift) in zip(rows.tolist(), told, _all_levels(model, rows, told), strict=True):
            caption: Caption = "none" if not text else "stored" if store_captions else "needed"
            header = Header(
                model.kind, owner, model.digest, size, size, len(row), chunk_tokens, (), shift, caption,
                text if caption == "stored" else "",
            )  # fmt: skip
            files.append(_write(header, row, levels))
    return files


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


def _write(header: Header, ids: list[int], levels: Int32[np.ndarray, "k N"]) -> bytes:
    writer, marks = Writer(), list[int]()
    for k, (token, row) in enumerate(zip(ids, levels, strict=True), start=1):
        writer.write(token, counts_of(row))
        if k % header.chunk_tokens == 0 or k == len(ids):
            writer.write(checksum(ids[:k]), CHECKS)
            marks.append(k + len(marks) + 1)
    stream, ends = writer.finish(marks)
    return replace(header, ends=tuple(ends)).write() + stream
