"""The stream of a .cvq file: symbols by the range coder of constriction, as bytes that may end anywhere.

A stream is a number between 0 and 1, digit by digit. A prefix of it leaves an interval of numbers; a symbol is decided
once all of the interval decodes to it, which is so if its lowest and its highest number do. So no symbol is guessed,
and no byte is spent on places to stop. docs/format.md, section 2.
"""

from collections.abc import Sequence
from functools import cache
from math import ceil, log2
from typing import Any, cast

import numpy as np
from jaxtyping import Int64

from channelvq.codec.levels import PRECISION, TOTAL
from channelvq.errors import InputError

WORD = 4  # bytes


class DamagedStreamError(Exception):
    """Bytes that no writer writes."""


@cache
def _constriction() -> Any:
    try:
        import constriction
    except ImportError:
        raise InputError(
            ".cvq files need the entropy coder constriction, which is not installed: pip install 'channelvq[codec]'"
        ) from None
    return cast(Any, constriction).stream


def _model(counts: Int64[np.ndarray, " N"]) -> Any:
    # constriction gives 1 to each symbol and shares out the other TOTAL - N by the numbers that it is given. These are
    # whole and TOTAL - N in all, so that its arithmetic is exact and its counts are ours; a test watches this.
    return _constriction().model.Categorical((counts - 1).astype(np.float64), perfect=False)


class Writer:
    """Takes symbols with their counts, and gives the shortest bytes that decode to them."""

    def __init__(self) -> None:
        self._encoder = _constriction().queue.RangeEncoder()
        self._symbols: list[int] = []
        self._models: list[Any] = []
        self._bits: list[float] = []  # in all, after each symbol

    def write(self, symbol: int, counts: Int64[np.ndarray, " N"]) -> None:
        """Append a symbol; counts: `TOTAL` in all, at least 1 each."""
        model = _model(counts)
        self._encoder.encode(symbol, model)
        self._symbols.append(symbol)
        self._models.append(model)
        self._bits.append((self._bits[-1] if self._bits else 0.0) + PRECISION - log2(counts[symbol]))

    def finish(self, marks: Sequence[int]) -> tuple[bytes, list[int]]:
        """The bytes, and how many of them decide the first symbols, for each number of symbols in `marks`."""
        data = self._shortest()
        return data, [self._deciding(data, count) for count in marks]

    def _shortest(self) -> bytes:
        """The coder ends on a whole word that any bytes may follow; nothing follows, so fewer bytes will do."""
        data = self._encoder.get_compressed().astype(">u4").tobytes()
        number = int.from_bytes(data, "big")
        for length in range(len(data) - 1, -1, -1):
            cut = number >> 8 * (len(self._encoder.get_compressed()) * WORD - length)
            # The one below may lie under the interval that decodes to the symbols, the one above may lie over it.
            fits = (x.to_bytes(length, "big") for x in (cut, cut + 1) if x < 1 << 8 * length)
            shorter = next((x for x in fits if self._decoded(x, 0x00, len(self._symbols))), None)
            if shorter is None:
                break
            data = shorter
        return data

    def _deciding(self, data: bytes, count: int) -> int:
        for length in range(ceil(self._bits[count - 1] / 8), len(data)):
            if all(self._decoded(data[:length], fill, count) for fill in (0x00, 0xFF)):
                return length
        return len(data)

    def _decoded(self, data: bytes, fill: int, count: int) -> bool:
        decoder = _decoder(data, fill, count)
        try:
            return all(decoder.decode(self._models[i]) == self._symbols[i] for i in range(count))
        except AssertionError:
            return False


class Reader:
    """Symbols of a stream, or of the beginning of one.

    complete: whether these are all its bytes; then zeros follow. num_symbols: the most that will be asked for.
    """

    def __init__(self, data: bytes, complete: bool, num_symbols: int) -> None:
        fills = (0x00,) if complete else (0x00, 0xFF)
        self._decoders = [_decoder(data, fill, num_symbols) for fill in fills]

    def read(self, counts: Int64[np.ndarray, " N"]) -> int | None:
        """The next symbol; None where the bytes do not decide it; DamagedStreamError for what no writer writes."""
        model, found = _model(counts), list[int | None]()
        for decoder in self._decoders:
            try:
                found.append(decoder.decode(model))
            except AssertionError:  # constriction's way to say that the bytes are invalid
                found.append(None)
        if found[0] is None:
            raise DamagedStreamError
        return found[0] if len(set(found)) == 1 else None


def _decoder(data: bytes, fill: int, num_symbols: int) -> Any:
    length = len(data) + num_symbols * (PRECISION // 8) + 4 * WORD
    words = np.frombuffer(data.ljust(length + -length % WORD, bytes([fill])), dtype=">u4")
    return _constriction().queue.RangeDecoder(words.astype(np.uint32))


def even_counts(size: int) -> Int64[np.ndarray, " N"]:
    """Of symbols that are all equally likely; size: a power of two."""
    return np.full(size, TOTAL // size, dtype=np.int64)
