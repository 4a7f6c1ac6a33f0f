"""The lookup against brute force: float64 where it decides, exact fractions where it does not."""

import subprocess
import sys
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelvq.errors import InputError
from channelvq.lookup import bfloat16, equal, integers, nearest, rounded
from channelvq.lookup.equal import first_equal
from channelvq.lookup.nearest import nearest_codeword


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
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(nearest_codeword(z, e), expected)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(nearest, "ROW_TILE", 37)
    monkeypatch.setattr(rounded, "CODE_TILE", 64)
    assert torch.equal(nearest_codeword(z, e), expected)


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


def crowded(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors and codewords among which float32 or even float64 leaves many candidates."""
    z, e = random(7, 6, seed=11), random(90, 6, seed=12)
    word, wide = random(6, seed=13), 10 ** (random(6, seed=14).clamp(-2, 2) * 9)
    orders = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i)) for i in range(90)])
    return {
        "identical codes": (z, word.expand(90, 6)),
        "identical vectors": (word.expand(7, 6), e),
        "constants": (torch.full((7, 6), 0.3), torch.full((90, 6), 0.3)),
        "all zero": (torch.zeros(7, 6), torch.zeros(90, 6)),
        "offset": (1000 + 0.01 * z, 1000 + 0.01 * e),
        "far offset": (1e6 + z, 1e6 + e),
        "signs": (torch.zeros(7, 6), e.sign()),
        "integers": ((2 * z).round(), (2 * e).round()),
        "orders of one word": (z[:, :1].expand(7, 6), word[orders]),
        "orders of a wide word": (z[:, :1].expand(7, 6), (word * wide)[orders]),
        "last places": (word.expand(7, 6) * (1 + 1e-7 * z), word * (1 + 1.2e-7 * e.sign())),
        "subnormal": (z * 1e-40, e * 1e-40),
        "overflowing": (z * 1e37, torch.cat([e[:45] * 1e37, e[45:] * 1e-37])),
    }[name]


CROWDED = [
    "identical codes",
    "identical vectors",
    "constants",
    "all zero",
    "offset",
    "far offset",
    "signs",
    "integers",
    "orders of one word",
    "orders of a wide word",
    "last places",
    "subnormal",
    "overflowing",
]


@pytest.mark.parametrize("name", CROWDED)
def test_exact_where_many_stay_open_in_any_tile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z, e = crowded(name)
    expected = brute_force(z, e)
    assert torch.equal(nearest_codeword(z, e), expected)
    for tile, held, merged in ((16, 128, 2**20), (32, 4096, 0)):
        monkeypatch.setattr(rounded, "CODE_TILE", tile)
        monkeypatch.setattr(equal, "MERGED", merged)
        for module in (nearest, rounded, equal, integers):
            monkeypatch.setattr(module, "HELD", held)
        assert torch.equal(nearest_codeword(z, e), expected)


@pytest.mark.parametrize("name", CROWDED)
def test_integers_alone_are_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z, e = crowded(name)
    monkeypatch.setattr(nearest, "_stages_for", lambda dim, largest: [])
    assert torch.equal(nearest_codeword(z, e), brute_force(z, e))


def test_zeros_of_both_signs_are_equal() -> None:
    e = torch.tensor([[1.0, 1.0], [0.0, -0.0], [-0.0, 0.0], [0.0, 0.0]])
    assert nearest_codeword(torch.tensor([[-0.0, 0.0], [0.1, -0.1]]), e).tolist() == [1, 1]
    assert first_equal(e).tolist() == [0, 1, 1, 1]


def test_a_dimension_without_a_float32_bound_goes_to_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [stage.dtype for stage in nearest._stages_for(2**23, 1.0)] == [torch.float64]
    assert [stage.dtype for stage in nearest._stages_for(64, 1.0)] == [torch.float32, torch.float64]
    z, e = random(50, 30, seed=15), random(200, 30, seed=16)
    expected = nearest_codeword(z, e)
    monkeypatch.setattr(nearest, "_UNIT32", 0.1)
    assert torch.equal(nearest_codeword(z, e), expected)


HARDWARE = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
needs_bfloat16 = pytest.mark.skipif(not HARDWARE, reason="this processor does not multiply bfloat16")


@pytest.fixture
def bfloat16_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that multiplies bfloat16 faster, which this one may not."""
    monkeypatch.setattr(bfloat16, "bfloat16_speedup", lambda: 5.0)


@pytest.fixture
def bfloat16_first(monkeypatch: pytest.MonkeyPatch, bfloat16_fast: None) -> None:
    """The bfloat16 pass also where there is too little to do for it."""
    for few in ("FEW_ROWS", "FEW_CODES", "FEW_NUMBERS"):
        monkeypatch.setattr(bfloat16, few, 1)


@needs_bfloat16
@pytest.mark.usefixtures("bfloat16_first")
@pytest.mark.parametrize("name", CROWDED)
@pytest.mark.parametrize(("tile", "block"), [(1024, 2**16), (16, 32)])
def test_bfloat16_pass_is_exact_where_many_stay_open(
    name: str, tile: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, e = crowded(name)
    monkeypatch.setattr(bfloat16, "CODE_TILE", tile)
    monkeypatch.setattr(bfloat16, "BLOCK", block)
    assert torch.equal(nearest_codeword(z, e), brute_force(z, e))


@needs_bfloat16
@pytest.mark.usefixtures("bfloat16_first")
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 200),
    st.integers(1, 70),
    st.integers(0, 10**6),
    st.sampled_from([1e-30, 1e-4, 1, 1e4, 1e18]),
    st.sampled_from([0.0, 1.0, 30.0]),
)
def test_bfloat16_pass_equals_float64(m: int, n: int, d: int, seed: int, size: float, offset: float) -> None:
    z, e = (random(m, d, seed=seed) + offset) * size, (random(n, d, seed=seed + 1) + offset) * size
    distances = torch.cdist(z.double(), e.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(nearest_codeword(z, e), distances.argmin(1))


@needs_bfloat16
@pytest.mark.usefixtures("bfloat16_fast")
@pytest.mark.parametrize(("m", "n", "d"), [(700, 5000, 64), (257, 70_000, 33), (2100, 2049, 256), (200, 4096, 1500)])
def test_bfloat16_pass_comes_first_and_equals_the_float32_pass(
    m: int, n: int, d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, e = random(m, d, seed=21), random(n, d, seed=22)
    assert bfloat16.pays(z, e)
    found = nearest_codeword(z, e)
    monkeypatch.setattr(bfloat16, "pays", lambda rows, codebook: False)
    assert torch.equal(found, nearest_codeword(z, e))


@needs_bfloat16
def test_bfloat16_pass_comes_first_only_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    z, e = random(700, 64, seed=21), random(5000, 64, seed=22)
    for speedup, first in ((1.5, True), (0.6, False)):
        monkeypatch.setattr(bfloat16, "bfloat16_speedup", lambda speedup=speedup: speedup)
        assert bfloat16.pays(z, e) == first


@needs_bfloat16
@pytest.mark.parametrize("dim", [1, 5, 300, 4000])
def test_bfloat16_minima_stay_inside_the_bound(dim: int) -> None:
    z, e = random(8, dim, seed=17).abs() + 1, random(160, dim, seed=18).abs() + 1
    exact = (e.double().square().sum(1)[:, None] / 2 - e.double() @ z.double().T).view(10, 16, 8).amin(1)
    rows = bfloat16._prepare(z)
    block = bfloat16._minima(rows, e, 1.0)
    stage = nearest._stages_for(dim, 10.0)[0]
    least, largest = block.minima[0, :10].double(), block.norms[0, :10].amax(1, keepdim=True)
    bound = bfloat16._bound(least, largest, rows.norms, rows.residuals, stage)
    assert ((least - exact).abs() <= bound).all()
    assert ((least - exact).abs().amax() > bound.amin() / 1000).all()  # and the bound is not idle talk


@pytest.mark.parametrize("dim", [1, 5, 300, 20_000])
def test_rounded_scores_stay_inside_the_bound(dim: int) -> None:
    # Positive numbers of like size: every partial sum rounds, and the errors do not cancel as they do around zero.
    z, e = random(8, dim, seed=17).abs() + 1, random(32, dim, seed=18).abs() + 1
    exact = rounded._scores(e.double(), z.double())[0]
    scores, norms = rounded._scores(e, z)
    stage = nearest._stages_for(dim, 10.0)[0]
    bound = stage.unit * norms * (torch.linalg.vector_norm(z.double(), dim=1) + norms)
    assert ((scores - exact).abs() <= bound[:, None]).all()


def test_bfloat16_and_float64_are_read_as_float32() -> None:
    z, e = random(60, 16, seed=19), random(300, 16, seed=20)
    assert torch.equal(
        nearest_codeword(z.bfloat16(), e.bfloat16()), nearest_codeword(z.bfloat16().float(), e.bfloat16().float())
    )
    assert torch.equal(nearest_codeword(z.double() * (1 + 1e-12), e.double()), nearest_codeword(z, e))


MEMORY = """
import os, torch
from channelvq.lookup import bfloat16
from channelvq.lookup.nearest import nearest_codeword
bfloat16.bfloat16_speedup = lambda: 5.0  # that pass, where the processor has it, is the one that takes most
random = lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
cases = {
    "ordinary": lambda: (random(2048, 64), random(65536, 64)),
    "wide": lambda: (random(1024, 1024), random(16384, 1024)),
    "many": lambda: (random(512, 64), random(200_000, 64)),
    "identical": lambda: (random(2048, 64), random(1, 64).expand(4096, 64).clone()),
    "constant": lambda: (torch.full((256, 64), 0.3), torch.full((16384, 64), 0.3)),
    "offset": lambda: (random(2048, 64).mul_(0.01).add_(1000), random(4096, 64).mul_(0.01).add_(1000)),
    "signs": lambda: (torch.zeros(2048, 256), random(4096, 256).sign_()),
    "bfloat16": lambda: (torch.ones(2**20, 64, dtype=torch.bfloat16), random(16, 64)),
}
def high_water():  # not ru_maxrss, which a child begins with the peak of its parent
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
for name, make in cases.items():
    if os.fork():  # before the first kernel, so that no thread is lost
        assert os.wait()[1] == 0
        continue
    z, e = make()
    for kind in (torch.float32, torch.float64):
        torch.ones(64, 64, dtype=kind) @ torch.ones(64, 64, dtype=kind)
    nearest_codeword(z[:64], e[:64])
    before = high_water()
    found = nearest_codeword(z, e)
    grown = (high_water() - before) / 1024
    print(name, grown - found.numel() * 8 / 2**20, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_extra_memory_is_at_most_64_mib() -> None:
    # Processes of their own, since a peak never falls. One (M, N) float32 array of the ordinary case has 512 MiB.
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    grown = dict(line.split() for line in result.stdout.splitlines())
    assert len(grown) == 8
    assert float(grown["ordinary"]) > 1  # it does see what is taken
    assert all(float(mebibytes) <= 64 for mebibytes in grown.values()), grown


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.zeros(2, 4).numpy(), r"vectors is a ndarray; give torch.as_tensor\(vectors\)"),
        ([[0.0] * 4], "vectors is a list"),
        (torch.zeros(2, 4, dtype=torch.complex64), "vectors of real numbers, got torch.complex64"),
        (torch.zeros(2, 4, device="meta"), "the vectors are on meta, the codebook on cpu"),
    ],
)
def test_what_is_no_table_of_numbers_is_named(vectors: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        nearest_codeword(vectors, random(3, 4, seed=1))
