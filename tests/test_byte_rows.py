"""Matrices stored as bytes: how far from the numbers, how often, and from whom."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelvq.byte_rows import SCALE, to_byte_rows, with_byte_rows, without_byte_rows
from channelvq.errors import InputError
from channelvq.pretrained import read_header, read_weights, write_weights


def matrix(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.logspace(-20, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))


@given(st.integers(0, 10_000))
def test_a_number_is_within_half_a_step_of_its_row_and_again_the_same(seed: int) -> None:
    before = matrix(seed, 9, 4, 5)
    after = without_byte_rows(with_byte_rows({"w": before}, {"w"}))["w"]
    step = before.flatten(1).abs().amax(1) / 127
    assert ((after - before).flatten(1).abs().amax(1) <= 0.5001 * step).all()
    assert torch.equal(without_byte_rows(with_byte_rows({"w": after}, {"w"}))["w"], after)


def test_rows_of_zeros_stay_zeros() -> None:
    rows, scale = to_byte_rows(torch.zeros(2, 3))
    assert not rows.any()
    assert scale.tolist() == [1, 1]


def test_a_file_of_bytes_is_read_as_float32_and_its_header_says_so(tmp_path) -> None:
    state = {"large": matrix(0, 64, 128), "small": torch.arange(3.0)}
    write_weights(tmp_path / "whole", state)
    write_weights(tmp_path / "bytes", with_byte_rows(state, {"large"}))
    assert (tmp_path / "bytes").stat().st_size < 0.3 * (tmp_path / "whole").stat().st_size
    read, header = read_weights(tmp_path / "bytes"), read_header(tmp_path / "bytes")
    assert read.keys() == header.keys() == state.keys()
    assert all((read[name].shape, read[name].dtype) == (header[name].shape, header[name].dtype) for name in state)
    assert torch.equal(read["small"], state["small"])


@pytest.mark.parametrize(
    "stored",
    [
        {f"w{SCALE}": torch.ones(3)},
        {"w": torch.ones(3, 2), f"w{SCALE}": torch.ones(3)},
        {"w": torch.ones(3, 2, dtype=torch.int8), f"w{SCALE}": torch.ones(4)},
        {"w": torch.tensor(1, dtype=torch.int8), f"w{SCALE}": torch.tensor(1.0)},
    ],
)
def test_scales_that_are_none_are_refused(stored: dict, tmp_path) -> None:
    write_weights(tmp_path / "odd", stored)
    for read in (read_weights, read_header):
        with pytest.raises(InputError, match="not the scales of a matrix"):
            read(tmp_path / "odd")
