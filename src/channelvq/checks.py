"""Checks of arguments that several parts make: whole numbers and ids, as Python, numpy or torch hold them."""

import operator
from typing import TYPE_CHECKING, Any, cast

from channelvq.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def whole_number(value: object) -> int | None:
    """A whole number of Python, numpy or torch as an int; None for anything else, True and 2.0 among it."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(cast(Any, value))
    except TypeError:
        return None


def check_whole_number(
    name: str, value: object, low: int, high: int | None = None, *, what: str = "a whole number"
) -> int:
    """`value` as an int; InputError that names it unless it is a whole number in low..high."""
    number = whole_number(value)
    if number is None or number < low or (high is not None and number > high):
        bounds = f"of at least {low}" if high is None else f"in {low}..{high}"
        raise InputError(f"{name}: expected {what} {bounds}, got {value!r}")
    return number


def whole_numbers(name: str, ids: "Tensor") -> "Tensor":
    """A tensor of whole numbers of any type as int64; InputError that names it for anything else.

    int64 before anything is compared: unsigned types cannot be, and the highest of them would come out negative.
    """
    import torch

    if not isinstance(ids, torch.Tensor):
        raise InputError(f"{name}: expected a tensor of whole numbers, got {type(ids).__name__}; see torch.as_tensor")
    if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
        raise InputError(f"{name}: expected whole numbers, got {ids.dtype}")
    numbers = ids.long()
    if ids.dtype == torch.uint64 and bool((numbers < 0).any()):
        raise InputError(f"{name}: expected whole numbers below 2**63, got {int(numbers.min()) + 2**64}")
    return numbers


def check_floats(x: object, shape: tuple[int, ...], expected: str, values: str) -> None:
    """InputError unless `x` is a batch (B, *shape) of floats, at least one; expected, values: what it is, in words."""
    import torch

    expected += f" (B, {', '.join(map(str, shape))}), B >= 1, float{values}"
    if not isinstance(x, torch.Tensor):
        raise InputError(f"{expected}, got {type(x).__name__}")
    if x.shape[1:] != shape or x.ndim != 1 + len(shape) or len(x) == 0 or not x.is_floating_point():
        raise InputError(f"{expected}, got {tuple(x.shape)}, {x.dtype}")
