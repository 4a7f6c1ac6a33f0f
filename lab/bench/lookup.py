"""`python -m lab bench lookup`: our exact lookup beside its peers, all in one interleaved run on this machine.

Each round times every method once, so that what else the machine does meets all of them; a ratio is a method's time
over that of the floor in the same round, and the median over rounds is kept. The floor is the bare float32 product of
codebook and vectors at the best of some tilings, which no lookup by a float32 product can beat.
"""

import multiprocessing
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.lookup.nearest import nearest_codeword
from lab.bench.timing import interleaved, machine, ratio, seconds
from lab.study import Tables

Lookup = Callable[[Tensor], Tensor]
TILINGS = ((1024, 512), (1024, 2048), (512, 512), (4096, 1024))
CHECKED = 256  # vectors whose indices are compared with float64
FLOOR = "float32 product alone"


@dataclass(frozen=True)
class Case:
    """Vectors and a codebook: random normal numbers, or a tokenizer's codebook and its tokens of held-out images."""

    codes: int
    dim: int
    rows: int = 2048
    tokenizer: str | None = None

    def make(self) -> tuple[Float[Tensor, "M D"], Float[Tensor, "N D"]]:
        """The numbers of the case, always the same ones."""
        if self.tokenizer is not None:
            return _of_tokenizer(self.tokenizer, self.rows)
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(self.rows, self.dim, generator=generator)
        return vectors, torch.randn(self.codes, self.dim, generator=generator)


def _of_tokenizer(name: str, rows: int) -> tuple[Tensor, Tensor]:
    from channelvq.evaluate.held_out import held_out
    from channelvq.images import normalize
    from channelvq.quantize.axis import to_vectors
    from channelvq.quantize.tokenwise import TokenwiseSimVQCodebook
    from channelvq.tokenizer import CVQTokenizer

    tokenizer = CVQTokenizer.from_pretrained(name)
    if isinstance(tokenizer.quantizer.quantizer, TokenwiseSimVQCodebook):
        raise InputError(f"bench lookup: the tokens of {name} have maps of their own; give a tokenizer with one table")
    images = normalize(held_out("photos", -(-rows // tokenizer.num_tokens), tokenizer.config.image_size))
    with torch.no_grad():
        maps = tokenizer.encoder(images)
        return to_vectors(maps, tokenizer.config.axis).flatten(0, 1)[
            :rows
        ], tokenizer.quantizer.quantizer.codes().detach().float()


def _cdist(codebook: Tensor) -> Lookup:
    return lambda z: torch.cdist(z, codebook).argmin(1)


def _expanded(codebook: Tensor) -> Lookup:
    # As the VQGAN family writes it.
    return lambda z: (z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T).argmin(1)


def _vector_quantize_pytorch(codebook: Tensor) -> Lookup:
    from vector_quantize_pytorch import VectorQuantize

    module = VectorQuantize(dim=codebook.shape[1], codebook_size=len(codebook)).eval().to(codebook.device)
    module._codebook.embed.data.copy_(codebook[None])
    return lambda z: module(z[None])[1][0]


def _faiss(codebook: Tensor) -> Lookup:
    import faiss  # pyright: ignore[reportMissingImports]

    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    return lambda z: torch.from_numpy(index.search(z.numpy(), 1)[1][:, 0])


METHODS: dict[str, Callable[[Tensor], Lookup]] = {
    "channelvq": lambda codebook: lambda z: nearest_codeword(z, codebook),
    "torch.cdist + argmin": _cdist,
    "expanded square + argmin": _expanded,
    "vector-quantize-pytorch": _vector_quantize_pytorch,
    "faiss IndexFlatL2": _faiss,
}


def run(cases: list[Case], rounds: int, path: Path | None) -> dict[str, Any]:
    """Measure the cases and write the result; methods whose package is not installed are left out and named."""
    records = [record for case in cases for record in _measure(case, rounds)]
    result = {"protocol": _protocol(rounds), "records": records}
    if path is not None:
        write_json(path, result)
    return result


def _protocol(rounds: int) -> dict[str, Any]:
    return machine() | {
        "rounds": rounds,
        "ratio": "median over rounds of the time over that of the bare float32 product in the same round",
        "peak": "MiB that the process grew by during one call, beyond inputs and outputs, in a process of its own",
        "agreement": f"share of {CHECKED} vectors whose index is that of float64",
    }


def _measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    vectors, codebook = case.make()
    built = {FLOOR: floor(vectors, codebook)} | {n: f for n in METHODS if (f := built_method(n, codebook)) is not None}
    truth = in_float64(vectors[:CHECKED], codebook)
    agreement = {n: float((f(vectors)[:CHECKED] == truth).float().mean()) for n, f in built.items() if n != FLOOR}
    times = interleaved({name: partial(lookup, vectors) for name, lookup in built.items()}, rounds)
    facts = {"codes": len(codebook), "dim": codebook.shape[1], "rows": len(vectors),
             "data": "random" if case.tokenizer is None else "tokenizer"}  # fmt: skip
    return [
        facts | {
            "method": name,
            "milliseconds": 1000 * statistics.median(taken),
            "ratio": ratio(taken, times[FLOOR]),
            "agreement": agreement.get(name),
            "peak_mib": peak(name, case) if name != FLOOR and sys.platform == "linux" else None,
        }
        for name, taken in times.items()
    ]  # fmt: skip


def built_method(name: str, codebook: Tensor) -> Lookup | None:
    """A lookup of METHODS on a codebook; None where its package is not installed, which is said."""
    try:
        return METHODS[name](codebook)
    except ImportError as error:
        print(f"{name} is left out: {error}; pip install 'channelvq[peers]'", file=sys.stderr)
        return None


def floor(vectors: Tensor, codebook: Tensor) -> Lookup:
    """The float32 product alone, at the fastest of TILINGS on these numbers."""

    def product(tiling: tuple[int, int]) -> Lookup:
        n, m = min(tiling[0], len(codebook)), min(tiling[1], len(vectors))
        out = torch.empty(n, m, device=codebook.device)

        def multiply(z: Tensor) -> Tensor:
            for i in range(0, len(codebook) // n * n, n):
                for j in range(0, len(z) // m * m, m):
                    torch.mm(codebook[i : i + n], z[j : j + m].T, out=out)
            return out

        return multiply

    tried = [product(tiling) for tiling in TILINGS]
    return min(tried, key=lambda lookup: min(seconds(partial(lookup, vectors)) for _ in range(3)))


def in_float64(vectors: Float[Tensor, "M D"], codebook: Float[Tensor, "N D"]) -> Int64[Tensor, " M"]:
    """The nearest codewords by float64, the lowest index of a tie."""
    e = codebook.double()
    parts = []
    for z in vectors.split(32):
        scores = e.square().sum(1) - 2 * z.double() @ e.T
        # On a GPU argmin takes any of several minima.
        parts.append((scores == scores.amin(1, keepdim=True)).to(torch.uint8).argmax(1))
    return torch.cat(parts)


def peak(name: str, case: Case) -> float:
    """MiB that a process grows by during one call: in a process of its own, since a peak never falls."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (name, case))


def _grown(name: str, case: Case) -> float:
    vectors, codebook = case.make()
    lookup = METHODS[name](codebook)
    METHODS[name](codebook[: len(codebook) // 8])(vectors[:64])  # what the first call of a kernel takes once
    before = _high_water()
    indices = lookup(vectors)
    return max(0.0, _high_water() - before - indices.numel() * indices.element_size() / 2**20)


def _high_water() -> float:
    """MiB at the peak of this process. Not ru_maxrss, which a child begins with the peak of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


HEADINGS = ("codes", "dim", "data", "method", "ms", "over the product", "peak MiB", "agreement")


def shown(result: dict[str, Any]) -> TextTable:
    """Every method of every case."""
    rows = [
        [f"{r['codes']:,}", str(r["dim"]), r["data"], r["method"], f"{r['milliseconds']:.1f}", f"{r['ratio']:.2f}",
         "" if r["peak_mib"] is None else f"{r['peak_mib']:.0f}",
         "" if r["agreement"] is None else f"{r['agreement']:.1%}"]
        for r in result["records"]
    ]  # fmt: skip
    return TextTable(HEADINGS, rows, note=f"{result['protocol']['machine']}.")


TABLES: Tables = {"lookup": ("lookup.json", shown)}


def load_cases(codes: list[int], dims: list[int], num_rows: int, tokenizer: str | None) -> list[Case]:
    """The cases of the command's options; raises InputError for numbers below 1."""
    if min([*codes, *dims, num_rows]) < 1:
        raise InputError(f"bench lookup: codes {codes}, dims {dims} and rows {num_rows} must all be at least 1")
    chosen = [Case(n, d, num_rows) for d in dims for n in codes]
    return [*chosen, *([Case(0, 0, num_rows, tokenizer)] if tokenizer else [])]
