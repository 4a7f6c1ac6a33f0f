"""Which tokenizer and which generator a file was written with, of those that are at hand.

At hand are the bundled ones, and what `keep` was given.
"""

from functools import cache

from channelvq.car.data import tokenizer_digest
from channelvq.car.model import CAR
from channelvq.codec.car_scores import CARScores
from channelvq.codec.container import TOKENIZER_DIGEST, Header
from channelvq.errors import InputError
from channelvq.pretrained import BUNDLED
from channelvq.tokenizer import CVQTokenizer

_kept: list[CVQTokenizer | CARScores] = []


def keep(model: CVQTokenizer | CAR) -> None:
    """Let files of this tokenizer or generator be read where none is given, as by `Image.open`."""
    _kept.append(CARScores(model) if isinstance(model, CAR) else model)


def tokenizer_for(header: Header, name: str) -> CVQTokenizer:
    """The tokenizer at hand that wrote a file; raises InputError where there is none."""
    for kept in _kept:
        tokenizer = kept.tokenizer if isinstance(kept, CARScores) else kept
        if _wrote(header, tokenizer_digest(tokenizer)):
            return tokenizer
    for source in ("tokenizer", "car/tokenizer"):
        tokenizer, digest = _bundled(source)
        if _wrote(header, digest):
            return tokenizer
    raise InputError(
        f"{name}: it was written with a tokenizer that is not at hand ({header.tokenizer.hex()}...); give it, on the "
        "command line as --tokenizer"
    )


def scores_for(header: Header, name: str) -> CARScores:
    """The scores of the generator at hand that wrote a file; raises InputError where there is none."""
    for kept in (*_kept, _bundled_scores()):
        if isinstance(kept, CARScores) and kept.digest == header.model:
            return kept
    raise InputError(
        f"{name}: it was written with a generator that is not at hand ({header.model.hex()}); give it, on the command "
        "line as --car"
    )


def _wrote(header: Header, digest: str) -> bool:
    return bytes.fromhex(digest)[:TOKENIZER_DIGEST] == header.tokenizer


@cache
def _bundled(source: str) -> tuple[CVQTokenizer, str]:
    tokenizer = CVQTokenizer.from_pretrained(BUNDLED / source)
    return tokenizer, tokenizer_digest(tokenizer)


@cache
def _bundled_scores() -> CARScores:
    return CARScores(CAR.from_pretrained("bundled"))
