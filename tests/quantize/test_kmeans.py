"""k-means: closed forms, monotone distortion, repeated and few vectors."""

import warnings
from itertools import pairwise

import pytest
import torch

from channelvq.errors import InputError
from channelvq.lookup.nearest import nearest_codeword
from channelvq.quantize.kmeans import FewVectorsWarning, kmeans


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distortion(vectors: torch.Tensor, centres: torch.Tensor) -> float:
    return float((vectors.double() - centres[nearest_codeword(vectors, centres)].double()).square().sum(1).mean())


def use(vectors: torch.Tensor, centres: torch.Tensor) -> int:
    return len(nearest_codeword(vectors, centres).unique())


def no_twins(centres: torch.Tensor) -> bool:
    return len(torch.unique(centres + 0.0, dim=0)) == len(centres)


@pytest.mark.parametrize("seed", range(4))
def test_distortion_never_rises(seed: int) -> None:
    # Few clusters and many centres, so that some centres fall empty and are placed anew.
    vectors = torch.randn(9, 4, generator=seeded(seed))[torch.randint(9, (600,), generator=seeded(seed))]
    vectors += 0.05 * torch.randn(600, 4, generator=seeded(seed + 1))
    course = [distortion(vectors, kmeans(vectors, 48, steps, seeded(seed))) for steps in range(8)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(course))
    assert course[-1] < 0.9 * course[0]


def test_separate_clusters_are_found() -> None:
    corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = corners.repeat_interleave(50, 0) + 0.01 * torch.randn(150, 2, generator=seeded(1))
    best = min((kmeans(vectors, 3, 10, seeded(seed)) for seed in range(8)), key=lambda c: distortion(vectors, c))
    means = vectors.view(3, 50, 2).double().mean(1).float()
    assert torch.allclose(best[nearest_codeword(means, best)], means, atol=1e-5)


def test_the_generator_decides_alone() -> None:
    vectors = torch.randn(300, 8, generator=seeded(2))
    first = kmeans(vectors, 40, 5, seeded(3))
    torch.manual_seed(99)
    assert torch.equal(kmeans(vectors, 40, 5, seeded(3)), first)
    assert not torch.equal(kmeans(vectors, 40, 5, seeded(4)), first)


def test_repeated_vectors_leave_no_centre_unused() -> None:
    # 60 distinct vectors, one of them in most rows: a plain random subset would be that one over and over.
    distinct = torch.randn(60, 5, generator=seeded(5))
    vectors = torch.cat([distinct, distinct[:1].expand(2000, 5)])
    for steps in (0, 1, 6):
        centres = kmeans(vectors, 40, steps, seeded(6))
        assert no_twins(centres)
        assert use(vectors, centres) == 40


@pytest.mark.parametrize(("rows", "distinct"), [(20, 20), (1000, 20), (1000, 64)])
def test_no_more_distinct_vectors_than_codes(rows: int, distinct: int) -> None:
    vectors = torch.randn(distinct, 5, generator=seeded(7)).repeat(rows // distinct + 1, 1)[:rows]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        centres = kmeans(vectors, 64, 5, seeded(8))
    assert [w.category for w in caught] == ([FewVectorsWarning] if distinct < 64 else [])
    assert all(f"{distinct} distinct vectors for 64 codes" in str(w.message) for w in caught)
    assert all(w.filename == __file__ for w in caught)
    assert no_twins(centres)
    assert distortion(vectors, centres) == 0
    assert use(vectors, centres) == distinct


@pytest.mark.parametrize(
    "vectors",
    [torch.full((500, 3), 0.7), torch.zeros(40, 3), torch.full((40, 3), 1e6), torch.tensor([[2.5]]), torch.zeros(1, 1)],
)
def test_constant_vectors_and_a_single_number(vectors: torch.Tensor) -> None:
    with pytest.warns(FewVectorsWarning, match="1 distinct vectors for 8 codes"):
        centres = kmeans(vectors, 8, 3, seeded(9))
    assert torch.isfinite(centres).all()
    assert no_twins(centres)
    assert torch.equal(centres[nearest_codeword(vectors, centres)], vectors)
    assert torch.equal(kmeans(vectors, 1, 3, seeded(9)), vectors[:1])


def test_no_vectors_at_all() -> None:
    with pytest.raises(InputError, match="no vectors"):
        kmeans(torch.zeros(0, 4), 8, 3, seeded(10))


def test_a_centre_that_no_vector_chose_moves_to_a_vector() -> None:
    """Two far clusters of 100, and 3 centres drawn from the first 20 vectors of one: the other is found in one step."""
    near = torch.randn(100, 2, generator=seeded(0))
    vectors = torch.cat([near, near[:2] + 1e4])
    for seed in range(20):
        centres = kmeans(vectors, 60, 3, seeded(seed))
        # Without re-placing, a centre that lost all its vectors would stay where it was or become zero.
        assert use(vectors, centres) == len(centres), seed
