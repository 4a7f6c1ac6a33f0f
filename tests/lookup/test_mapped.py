"""The lookup through maps: the exact minimum, the lowest index of a tie, the same answer for every tile and batch."""

import pytest
import torch
from torch import Tensor

from channelvq.errors import InputError
from channelvq.lookup import mapped
from channelvq.lookup.mapped import nearest_mapped


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(seed: int, batch: int = 9, tokens: int = 5, dim: int = 12, rank: int = 4, codes: int = 70) -> list[Tensor]:
    shapes = ((batch, tokens, dim), (tokens, dim, rank), (codes, rank))
    return [torch.randn(shape, generator=seeded(10 * seed + i)) for i, shape in enumerate(shapes)]


def distances(z: Tensor, maps: Tensor, codebook: Tensor) -> Tensor:
    """In all D numbers, in float64: (B, K, N)."""
    codewords = torch.einsum("nr,kdr->knd", codebook.double(), maps.double())
    return (z.double()[:, :, None] - codewords).square().sum(3)


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_is_the_argmin_of_the_distances_in_all_numbers(rank: int) -> None:
    z, maps, codebook = problem(rank, rank=rank)
    assert torch.equal(nearest_mapped(z, maps, codebook), distances(z, maps, codebook).argmin(2))


def test_maps_of_dependent_columns_and_of_none() -> None:
    z, maps, codebook = problem(3)
    maps[0, :, 1] = 2 * maps[0, :, 0]
    maps[1] = 0  # every codeword of this token is zero: a tie of all
    found = nearest_mapped(z, maps, codebook)
    assert not found[:, 1].any()
    others = [0, 2, 3, 4]
    assert torch.equal(found[:, others], distances(z, maps, codebook).argmin(2)[:, others])


def test_the_lowest_index_of_equal_codewords_wins() -> None:
    z, maps, codebook = problem(4, codes=40)
    once = nearest_mapped(z, maps, codebook)
    assert torch.equal(nearest_mapped(z, maps, torch.cat([codebook, codebook])), once)
    assert torch.equal(nearest_mapped(z, maps, torch.cat([codebook.flip(0), codebook])), 39 - once)


def test_gaps_far_below_float32_are_seen() -> None:
    maps = torch.eye(3)[None]
    codebook = torch.full((2, 3), 1000.0)
    codebook[0, 0], codebook[1, 1] = 1000.0 + 2**-13, 1000.0 + 2**-12
    # Squared distances of 2^-26 and 2^-24 beside |e|^2 of three million: float32 alone sees a tie.
    z = torch.full((1, 1, 3), 1000.0)
    assert nearest_mapped(z, maps, codebook).item() == 0
    assert nearest_mapped(z, maps, codebook.flip(0)).item() == 1


def test_neither_tiles_nor_batches_nor_threads_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    z, maps, codebook = problem(5, batch=33, codes=90)
    codebook[50:60] = codebook[:10] * (1 + 1e-7)  # near ties
    whole = nearest_mapped(z, maps, codebook)
    assert torch.equal(torch.cat([nearest_mapped(row[None], maps, codebook) for row in z]), whole)
    for tile in (1, 200, 7000):
        monkeypatch.setattr(mapped, "TILE", tile)
        assert torch.equal(nearest_mapped(z, maps, codebook), whole)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads % 2 + 1)
    try:
        assert torch.equal(nearest_mapped(z, maps, codebook), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("scale", [1e-25, 1e15])
def test_very_small_and_very_large_numbers(scale: float) -> None:
    z, maps, codebook = problem(6)
    expected = distances(z, maps, codebook).argmin(2)
    assert torch.equal(nearest_mapped(z * scale, maps * scale, codebook), expected)


def test_autocast_changes_nothing() -> None:
    z, maps, codebook = problem(7)
    expected = nearest_mapped(z, maps, codebook)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_mapped(z, maps, codebook), expected)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_refuses_what_has_no_order(place: int) -> None:
    given = problem(8)
    given[place].view(-1)[3] = float("nan")
    with pytest.raises(InputError, match="NaN or infinity"):
        nearest_mapped(*given)
