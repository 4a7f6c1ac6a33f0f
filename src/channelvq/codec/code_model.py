"""What both sides of a .cvq file share: the code model of a picture, captions, the checksum of a chunk."""

import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int32, Int64
from torch import Tensor

from channelvq.car.data import tokenizer_digest
from channelvq.car.model import CAR
from channelvq.codec.car_scores import CARScores
from channelvq.codec.container import MOST_CAPTION
from channelvq.codec.stream import even_counts
from channelvq.codec.tables import CodeTables
from channelvq.errors import InputError
from channelvq.tokenizer import CVQTokenizer

CHECKS = even_counts(256)  # of the symbol that a checksum is
CodeModel = CodeTables | CARScores


class Walk(Protocol):
    """Levels of one token after the other."""

    def levels(self, ids: Int64[Tensor, "B k"], shifts: list[int]) -> Int32[np.ndarray, "B N"]:
        """Of the token after the first k, for each picture."""
        ...


def code_model(tokenizer: CVQTokenizer, car: CAR | CARScores | None = None) -> CodeModel:
    """The tokenizer's tables, or the scores of a generator on this tokenizer; InputError where it has another one."""
    if car is None:
        return CodeTables.of(tokenizer)
    if car.tokenizer is not tokenizer and (own := tokenizer_digest(car.tokenizer)) != tokenizer_digest(tokenizer):
        raise InputError(f"the generator is one of another image tokenizer ({own}); use `car.tokenizer`")
    return car if isinstance(car, CARScores) else CARScores(car)


def check_written(model: CodeModel, num_tokens: int) -> None:
    """InputError for more tokens than a generator writes."""
    if isinstance(model, CARScores) and num_tokens > model.num_tokens:
        raise InputError(
            f"the generator writes the first {model.num_tokens} tokens of an image, {num_tokens} are asked for; give "
            f"num_tokens={model.num_tokens}"
        )


def checksum(ids: Sequence[int]) -> int:
    """The lowest 8 bits of the CRC-32 of the tokens so far, 4 bytes each, lowest first."""
    return zlib.crc32(np.asarray(ids, dtype="<u4").tobytes()) & 0xFF


def captions_of(captions: Sequence[str] | None, count: int, car: bool) -> list[str]:
    """One text for each picture, "" for none; InputError for another number, or where no generator reads them."""
    if captions is None:
        return [""] * count
    captions = [captions] if isinstance(captions, str) else list(captions)
    if not car and any(captions):
        raise InputError("a caption helps only a generator: give car=..., on the command line --model car")
    if len(captions) != count:
        raise InputError(f"captions: {len(captions)} for {count} pictures; give one for each, '' for none")
    for caption in captions:
        if not isinstance(caption, str) or len(caption.encode(errors="replace")) > MOST_CAPTION:
            raise InputError(f"captions: expected text of at most {MOST_CAPTION} bytes, got {caption!r:.80}")
    return captions
