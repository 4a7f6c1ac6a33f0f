"""Whole numbers and ids, as Python, numpy and torch hold them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from channelvq.checks import check_whole_number, whole_number, whole_numbers
from channelvq.errors import InputError
from channelvq.evaluate.reconstruction import _prefix_lengths
from channelvq.pictures import prefix_lengths


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor([3])])
def test_whole_numbers(value: Any) -> None:
    assert whole_number(value) == 3
    assert type(check_whole_number("n", value, 3, 3)) is int


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), torch.tensor(True), 3.0, np.float64(3), torch.tensor(3.0), "3", None, [3]]
)
def test_what_is_no_whole_number(value: Any) -> None:
    assert whole_number(value) is None
    with pytest.raises(InputError, match=r"n: expected a whole number of at least 0, got"):
        check_whole_number("n", value, 0)


def test_the_range_is_told() -> None:
    with pytest.raises(InputError, match=r"n: expected a whole number in 1\.\.8, got 9"):
        check_whole_number("n", 9, 1, 8)


@pytest.mark.parametrize("call", [
    lambda n: prefix_lengths(n)[-1],
    lambda n: _prefix_lengths(8, [n])[-1],
])  # fmt: skip
def test_counts_of_the_python_api(call: Callable[[Any], int]) -> None:
    assert call(np.int64(4)) == call(4)
    for wrong in (4.0, "4", True, -1, 0):
        with pytest.raises(InputError):
            call(wrong)


def test_ids_are_tensors_of_whole_numbers() -> None:
    for kind in (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64):
        found = whole_numbers("ids", torch.tensor([3, 7], dtype=kind))
        assert (found.dtype, found.tolist()) == (torch.int64, [3, 7])
    largest = torch.from_numpy(np.array([5, 2**64 - 1], dtype=np.uint64))
    with pytest.raises(InputError, match=f"below 2.{{2}}63, got {2**64 - 1}"):
        whole_numbers("ids", largest)
    for wrong in (torch.zeros(2), torch.zeros(2, dtype=torch.bool), torch.zeros(2, dtype=torch.complex64), [1], None):
        with pytest.raises(InputError, match="ids: expected"):
            whole_numbers("ids", wrong)  # type: ignore[arg-type]
