"""`python -m lab bench latency`: image to tokens and text to image at a large codebook, channel-wise beside patch-wise.

Fresh weights of the small networks: time does not depend on what was learned. Both axes have 64 tokens of 64 numbers,
so their lookups are of one size; what differs is that a prefix of channels is already a picture.
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from channelvq.car.model import CAR
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.lookup.nearest import nearest_codeword
from channelvq.quantize.axis import to_vectors
from lab.bench.generate import PREVIEW, PROMPT, fresh
from lab.bench.timing import interleaved, machine
from lab.study import Tables

TOKENS = 64
AXES = ("channel", "patch")


def _methods(model: CAR, images: Tensor) -> dict[str, Callable[[], object]]:
    tokenizer, prompts = model.tokenizer, [PROMPT] * len(images)
    codes = tokenizer.quantizer.codes().detach()
    vectors = to_vectors(tokenizer.latents(images), tokenizer.config.axis).flatten(0, 1)
    ids = tokenizer.tokenize(images)
    return {
        "tokenize": partial(tokenizer.tokenize, images),
        "lookup": partial(nearest_codeword, vectors, codes),
        "detokenize": partial(tokenizer.detokenize, ids, "tensor"),
        "generate": lambda: model.generate(prompts, guidance_scale=1.0).images,
        "first preview": lambda: next(iter(model.stream(prompts, PREVIEW, guidance_scale=1.0))).images,
    }


def run(codes: int, batches: list[int], rounds: int, path: Path | None) -> dict[str, Any]:
    """Measure both axes in the same rounds and write the result; batches: images at once."""
    models = {axis: fresh(codes, TOKENS, axis) for axis in AXES}
    records = []
    for rows in batches:
        images = torch.rand(rows, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        methods = {
            (axis, name): work for axis, model in models.items() for name, work in _methods(model, images).items()
        }
        for work in methods.values():
            work()
        times = interleaved(methods, rounds)
        records += [
            {"axis": axis, "codes": codes, "tokens": TOKENS, "rows": rows, "work": name,
             "milliseconds": 1000 * statistics.median(taken)}
            for (axis, name), taken in times.items()
        ]  # fmt: skip
    result = {"protocol": machine() | {"rounds": rounds, "milliseconds": "median over rounds, of the whole batch"},
              "records": records}  # fmt: skip
    if path is not None:
        write_json(path, result)
    return result


HEADINGS = ("codes", "images", "work", "channel-wise ms", "patch-wise ms")


def shown(result: dict[str, Any]) -> TextTable:
    """A row for each batch and piece of work, both axes side by side."""
    times = {(r["codes"], r["rows"], r["work"], r["axis"]): r["milliseconds"] for r in result["records"]}
    rows = [
        [f"{codes:,}", str(count), work, f"{value:.1f}", f"{times[codes, count, work, 'patch']:.1f}"]
        for (codes, count, work, axis), value in times.items()
        if axis == "channel"
    ]
    return TextTable(HEADINGS, rows, note=f"{result['protocol']['machine']}.")


TABLES: Tables = {"latency": ("latency.json", shown)}
