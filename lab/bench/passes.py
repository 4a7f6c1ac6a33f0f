"""Which arithmetics the exact lookup needs: how many rows each pass leaves, and what the lookup takes without it.

python -m lab.bench.passes results/lookup-passes.json
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.lookup import bfloat16, nearest, nearest_codeword
from lab.bench.timing import interleaved, machine, ratio
from lab.study import Tables

ROWS, ROUNDS = 2048, 7


def cases() -> dict[str, tuple[Tensor, Tensor]]:
    """Vectors and codebooks: ordinary ones, a trained-like falling spectrum, and such as have ties."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    spectrum = 0.9 ** torch.arange(64)
    grid = torch.randint(-2, 3, (4096, 16), generator=generator).float()
    return {
        "normal, N 4,096, D 64": (normal(ROWS, 64), normal(4096, 64)),
        "normal, N 16,384, D 256": (normal(ROWS, 256), normal(16384, 256)),
        "falling spectrum, N 4,096, D 64": (normal(ROWS, 64) * spectrum, normal(4096, 64) * spectrum),
        "far from the origin, N 4,096, D 64": (normal(ROWS, 64) + 300, normal(4096, 64) + 300),
        "whole numbers, N 4,096, D 16": (torch.randint(-2, 3, (ROWS, 16), generator=generator).float(), grid),
    }


def open_rows(vectors: Tensor, codebook: Tensor) -> dict[str, float]:
    """Share of the rows that a pass is asked about, by the pass: those that the passes before it left undecided."""
    asked: dict[str, int] = {}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(rows: Tensor, codebook: Tensor, codes: Tensor | None, *rest: Any, **stage: Any) -> Any:
            kind = f"{stage['stage'].dtype}".removeprefix("torch.") if name == "rounded" else name
            asked[kind] = asked.get(kind, 0) + len(rows)
            return function(rows, codebook, codes, *rest, **stage)

        return call

    with (
        patch.object(bfloat16, "narrow", counted("bfloat16", bfloat16.narrow)),
        patch.object(nearest.rounded, "narrow", counted("rounded", nearest.rounded.narrow)),
        patch.object(nearest, "solve_exactly", counted("integers", nearest.solve_exactly)),
    ):
        nearest_codeword(vectors, codebook)
    return {name: count / len(vectors) for name, count in asked.items()}


def without_float64(dim: int, largest: float) -> list[Any]:
    """The stages less the last: what float32 leaves open goes to the integers."""
    return _STAGES(dim, largest)[:1]


_STAGES = nearest._stages_for


def run(path: Path | None) -> dict[str, Any]:
    """Measure every case and write the result."""
    records = []
    for name, (vectors, codebook) in cases().items():

        def plain(z: Tensor = vectors, e: Tensor = codebook) -> Tensor:
            return nearest_codeword(z, e)

        def slower(z: Tensor = vectors, e: Tensor = codebook) -> Tensor:
            with patch.object(bfloat16, "pays", lambda rows, codebook: False):
                return nearest_codeword(z, e)

        def fewer(z: Tensor = vectors, e: Tensor = codebook) -> Tensor:
            with patch.object(nearest, "_stages_for", without_float64):
                return nearest_codeword(z, e)

        assert torch.equal(plain(), slower())
        assert torch.equal(plain(), fewer())
        times = interleaved({"all": plain, "no bfloat16": slower, "no float64": fewer}, ROUNDS)
        records.append({
            "case": name,
            "asked": open_rows(vectors, codebook),
            "without_bfloat16": ratio(times["no bfloat16"], times["all"]),
            "without_float64": ratio(times["no float64"], times["all"]),
        })  # fmt: skip
    result = {
        "protocol": machine() | {
            "rows": ROWS, "rounds": ROUNDS,
            "asked": "share of the rows that a pass is asked about; distinct ones after the first",
            "without": "median over rounds of the time without the pass over the time with all, in the same round",
        },
        "records": records,
    }  # fmt: skip
    if path is not None:
        write_json(path, result)
    return result


PASSES = ("bfloat16", "float32", "float64", "integers")


def shown(result: dict[str, Any]) -> TextTable:
    """A row a case."""
    rows = [
        [row["case"], *(f"{row['asked'][name]:.1%}" if name in row["asked"] else "" for name in PASSES),
         f"{row['without_bfloat16']:.2f}", f"{row['without_float64']:.2f}"]
        for row in result["records"]
    ]  # fmt: skip
    headings = (
        "2,048 vectors",
        *(f"rows asked of {name}" for name in PASSES),
        "time without bfloat16",
        "without float64",
    )
    return TextTable(headings, rows, note=f"{result['protocol']['machine']}. Times are over that of all passes.")


TABLES: Tables = {"lookup-passes": ("lookup-passes.json", shown)}
