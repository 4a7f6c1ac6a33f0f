"""What is computed from weights, and kept until they change."""

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """A value that is computed again only after a tensor that it comes from was written to or replaced.

    Writes through `.data` are not seen; torch does not count them.
    """

    def __init__(self) -> None:
        self._kept: tuple[object, T] | None = None

    def get(self, weights: Iterable[Tensor], compute: Callable[[], T]) -> T:
        """The value; weights: the tensors that it comes from."""
        version = tuple((weight.data_ptr(), weight._version, weight.dtype) for weight in weights)
        if self._kept is None or self._kept[0] != version:
            self._kept = version, compute()
        return self._kept[1]

    def __deepcopy__(self, memo: Any) -> "Kept[T]":
        """Nothing: the copy of a module computes its own, since a kept function would go on using the first one."""
        return Kept()
