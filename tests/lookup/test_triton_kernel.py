"""The CUDA kernel, through Triton's interpreter on the CPU; on a GPU the lookup itself runs it."""

from types import ModuleType

import pytest
import torch

from channelvq.lookup import bfloat16
from channelvq.lookup.nearest import nearest_codeword


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def kernel() -> ModuleType:
    """The kernel's module, interpreted (tests/conftest.py)."""
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:  # a GPU is there
        pytest.skip("TRITON_INTERPRET is not set")
    from channelvq.lookup import triton_kernel

    return triton_kernel


@pytest.mark.parametrize(("m", "n", "d", "scale"), [(70, 1024, 33, 1.0), (5, 1500, 64, 2.0), (64, 900, 256, 0.5)])
def test_kernel_minima_are_those_of_rounded_operands(kernel: ModuleType, m: int, n: int, d: int, scale: float) -> None:
    z, e = random(m, d, seed=1), random(n, d, seed=2)
    size = -(-n // 1024) * 1024
    norms = torch.zeros(size, dtype=torch.float64)
    norms[:n] = torch.linalg.vector_norm(e * scale, dim=1, dtype=torch.float64)
    found = kernel.group_minima(z, e, norms, scale, 16)
    rounded = (e * scale).bfloat16().double() @ z.bfloat16().double().T
    scores = torch.full((size, m), torch.inf, dtype=torch.float64)
    scores[:n] = norms[:n, None].square() / 2 - rounded
    expected = scores.view(-1, 16, m).amin(1)
    known = expected < torch.inf
    assert (found[~known] == torch.inf).all()
    assert ((found.double() - expected)[known].abs() <= 1e-6 * d * (1 + expected[known].abs())).all()


def test_lookup_by_the_kernel_is_exact(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    z, e = random(100, 40, seed=3), random(2100, 40, seed=4)
    e[7] = e[2000]
    z[0] = e[7]
    expected = torch.cdist(z.double(), e.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert expected[0] == 7

    def by_kernel(rows: bfloat16.Rows, words: torch.Tensor, scale: float, norms: torch.Tensor) -> bfloat16._Block:
        norms[: len(words)] = torch.linalg.vector_norm(words * scale, dim=1, dtype=torch.float64)
        minima = kernel.group_minima(rows.numbers, words, norms, scale, 16).view(-1, 64, len(rows.numbers))
        return bfloat16._Block(minima, minima.amin(1), norms.view(-1, 64, 16))

    monkeypatch.setattr(bfloat16, "_products", by_kernel)
    monkeypatch.setattr(bfloat16, "pays", lambda rows, codebook: True)
    assert torch.equal(nearest_codeword(z, e), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_lookup_on_a_gpu_equals_the_cpu() -> None:
    z, e = random(3000, 256, seed=5), random(16384, 256, seed=6)
    assert torch.equal(nearest_codeword(z.cuda(), e.cuda()).cpu(), nearest_codeword(z, e))
