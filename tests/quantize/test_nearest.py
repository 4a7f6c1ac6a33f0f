"""The lookup against brute force: float64 where it decides, exact fractions where it does not."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelvq.errors import InputError
from channelvq.quantize import nearest
from channelvq.quantize.nearest import nearest_codeword


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """argmin over exact rational distances, the lowest index on a tie."""
    words = [[Fraction(x) for x in word] for word in codebook.tolist()]
    found = []
    for vector in vectors.tolist():
        z = [Fraction(x) for x in vector]
        distances = [sum((a - b) ** 2 for a, b in zip(z, word, strict=True)) for word in words]
        found.append(distances.index(min(distances)))
    return torch.tensor(found)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 1), (300, 1000, 64), (5000, 33, 3), (70, 2500, 256)])
def test_equals_float64_brute_force(m: int, n: int, d: int) -> None:
    z, e = random(m, d, seed=1), random(n, d, seed=2)
    distances = torch.cdist(z.double(), e.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(nearest_codeword(z, e), distances.argmin(1))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from([1e-4, 1, 1e4, 1e18]),
)
def test_exact_among_near_duplicates(m: int, n: int, d: int, seed: int, size: float) -> None:
    # Codewords one float32 step apart around a few centres: float32 distances cannot tell them apart.
    centres = random(3, d, seed=seed) * size
    pick = torch.randint(3, (n,), generator=torch.Generator().manual_seed(seed))
    e = centres[pick] * (1 + random(n, d, seed=seed + 1).sign() * 1.2e-7)
    z = centres[:1].expand(m, d) * (1 + random(m, d, seed=seed + 2) * 1e-6)
    assert torch.equal(nearest_codeword(z, e), brute_force(z, e))


def test_lowest_index_wins_a_tie_in_any_tile() -> None:
    e = random(3000, 8, seed=3)
    e[[5, 1200, 2999]] = e[7].clone()
    assert nearest_codeword(e[[2999]], e).tolist() == [5]
    symmetric = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert nearest_codeword(torch.zeros(1, 2), symmetric).tolist() == [0]


def test_answer_does_not_depend_on_tiles_batch_threads_or_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    z, e = random(500, 48, seed=4), random(1111, 48, seed=5)
    expected = nearest_codeword(z, e)
    assert torch.equal(torch.cat([nearest_codeword(row[None], e) for row in z]), expected)
    assert torch.equal(nearest_codeword(z.T.contiguous().T, e.T.contiguous().T), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_codeword(z, e), expected)
    monkeypatch.setattr(nearest, "ROW_TILE", 37)
    monkeypatch.setattr(nearest, "CODE_TILE", 64)
    assert torch.equal(nearest_codeword(z, e), expected)


def test_reduced_matmul_precision_changes_nothing_and_is_put_back() -> None:
    z, e = random(300, 64, seed=6), random(800, 64, seed=7)
    expected = nearest_codeword(z, e)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(nearest_codeword(z, e), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_bfloat16_vectors_reach_every_code() -> None:
    e = random(600, 32, seed=8).bfloat16().float()
    assert torch.equal(nearest_codeword(e.bfloat16(), e), torch.arange(600))


def test_huge_and_tiny_numbers() -> None:
    e = random(40, 5, seed=9)
    for scale in (1e30, 1e-30):
        z = random(20, 5, seed=10) * scale
        assert torch.equal(nearest_codeword(z, e * scale), brute_force(z, e * scale))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_has_no_distance_is_refused_by_name(bad: float) -> None:
    good, spoiled = torch.zeros(2, 3), torch.full((2, 3), bad)
    with pytest.raises(InputError, match="vectors hold NaN or infinity"):
        nearest_codeword(spoiled, good)
    with pytest.raises(InputError, match="codebook hold NaN or infinity"):
        nearest_codeword(good, spoiled)


def test_shapes_are_checked() -> None:
    with pytest.raises(InputError, match=r"\(2, 3\) and \(4, 5\)"):
        nearest_codeword(torch.zeros(2, 3), torch.zeros(4, 5))
    with pytest.raises(InputError, match="empty"):
        nearest_codeword(torch.zeros(2, 3), torch.zeros(0, 3))
    assert nearest_codeword(torch.zeros(0, 3), torch.zeros(2, 3)).shape == (0,)
