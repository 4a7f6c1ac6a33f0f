"""Which split a sample belongs to, decided by its key alone.

Position never decides: adding, removing or reordering files moves no other sample between train and test.
"""

import hashlib
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt64

from channelvq.errors import InputError

Split = Literal["train", "validation", "test"]


def assign_split(key: str, validation: float = 0.05, test: float = 0.10) -> Split:
    """Split of the sample named `key`: the same on every machine, in every run.

    The SHA-256 of the key is read as a number in [0, 1): below `test` it is a test sample, in the next `validation` a
    validation sample, else a training sample. So another `validation` fraction never moves a sample in or out of test.
    Raises InputError unless both fractions are >= 0 and together at most 1.
    """
    if not (validation >= 0 and test >= 0 and validation + test <= 1):
        raise InputError(
            f"split fractions validation={validation}, test={test}: both must be at least 0 and together at most 1"
        )
    uniform = split_number(key) / 2**64
    if uniform < test:
        return "test"
    return "validation" if uniform < test + validation else "train"


def split_number(key: str) -> int:
    """The first 64 bits of the SHA-256 of a key."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def split_mask(
    numbers: UInt64[np.ndarray, "..."], split: Split, validation: float, test: float
) -> Bool[np.ndarray, "..."]:
    """Which samples, by their `split_number`, `assign_split` puts in `split`."""
    uniform = numbers.astype(np.float64) / 2**64
    if split == "test":
        return uniform < test
    held_out = uniform < test + validation
    return held_out & (uniform >= test) if split == "validation" else ~held_out


class EmptySplitError(InputError):
    """A data set has no image in the split asked for; problem: what is wrong, without the advice of the message."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; give larger fractions validation= and test=, or use split='all'")
        self.problem = problem

    def __reduce__(self) -> tuple[type["EmptySplitError"], tuple[str]]:
        return type(self), (self.problem,)
