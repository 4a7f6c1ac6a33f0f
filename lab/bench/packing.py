"""`python -m lab bench packing`: a step of a generator in packed rows beside one with a row for each caption.

small/scenes-car in stage II, with the short captions of its scenes, and with captions as the web has them: 5 to 77
words, most of them short. Both sides take the same samples, in turns. Not compiled, since each width would be.
"""

import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int32
from torch import Tensor

from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.train.car_task import CARRecipe, CARTask
from channelvq.train.engine import Engine
from channelvq.train.run import load_recipe
from lab.bench.timing import interleaved, machine, ratio
from lab.study import Tables

SETTINGS = ("tokenizer=bundled", "data.sources.scenes.sprites=shapes", "data.validation_images=8", "train.threads=0",
            "objective.train_images=256", "train.compile=false", "train.device=cpu")  # fmt: skip
LONG, SLOT = "5 to 77 words", 128
CASES = {"of the scenes": 32, LONG: SLOT}  # captions, and the slot of tokens for them
ROW = 192  # positions
WORDS, TOKENS_A_WORD = (5, 77), 1.4
MEDIAN, SPREAD = 16, 0.7  # of the words, which are log-normal


def long_captions(count: int) -> Int32[Tensor, "n T"]:
    """Random words, -1 on padding on the left: how long a step takes does not depend on which they are."""
    generator = torch.Generator().manual_seed(0)
    words = (MEDIAN * (SPREAD * torch.randn(count, 1, generator=generator)).exp()).clamp(*WORDS)
    tokens = torch.randint(0, 256, (count, SLOT), generator=generator)
    return torch.where(torch.arange(SLOT) >= SLOT - (TOKENS_A_WORD * words).round(), tokens, -1).to(torch.int32)


def run(rounds: int, path: Path | None, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Measure and write the result. extra: overrides of the recipe."""
    load = os.getloadavg()[0]
    protocol = machine() | {
        "rounds": rounds, "load": load, "row": ROW, "threads": torch.get_num_threads(),
        "long": f"words log-normal with median {MEDIAN} and deviation {SPREAD}, cut to {WORDS[0]} and {WORDS[1]}; "
        f"{TOKENS_A_WORD} tokens a word",
        "ratio": "median over rounds of samples a second, packed over not, on the same samples, in turns",
        "padding": "share of the backbone's positions, over the measured steps",
    }  # fmt: skip
    result = {"protocol": protocol, "records": [_case(name, rounds, extra) for name in CASES]}
    if path is not None:
        write_json(path, result)
    return result


def _case(captions: str, rounds: int, extra: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        engines = [_engine(captions, packing, f"{folder}/{packing}", extra) for packing in ("null", ROW)]
        first = engines[0].config.steps - rounds - 1
        batches = [next(engines[0].task.batches(first + i, 0, 1)) for i in range(rounds + 1)]
        positions: list[int] = []
        for engine in engines:
            engine.task.car.backbone.register_forward_pre_hook(  # type: ignore[attr-defined]
                lambda module, args, given: positions.append(given["position_ids"].numel()), with_kwargs=True
            )
        order = iter([i // 2 for i in range(2 * rounds + 2)])
        steps = {i: lambda e=e: e.step(batches[n := next(order)], first + n) for i, e in enumerate(engines)}
        times = {side: taken[1:] for side, taken in interleaved(steps, rounds + 1).items()}
        real = [_real(engines[0].task, batch, first + i) for i, batch in enumerate(batches)]
    padding = [1 - sum(real) / sum(positions[side::2]) for side in (0, 1)]
    size = len(batches[0])
    return {"captions": captions, "batch": size, "padding": padding[0], "packed_padding": padding[1],
            "samples_per_second": size / statistics.median(times[0]),
            "packed_samples_per_second": size / statistics.median(times[1]),
            "ratio": 1 / ratio(times[1], times[0])}  # fmt: skip


def _engine(captions: str, packing: int | str, folder: str, extra: Sequence[str]) -> Engine:
    settings = [*SETTINGS, *extra, f"model.max_text_tokens={CASES[captions]}", f"objective.packing={packing}"]
    recipe = load_recipe("small/scenes-car", [*settings, f"train.output_dir={folder}"], of=CARRecipe)
    task = CARTask(recipe)
    if captions == LONG:
        task.train_text = long_captions(len(task.train_text))
    return Engine(task, recipe.train, recipe)


def _real(task: Any, batch: Tensor, step: int) -> int:
    """Positions of a step that are no padding."""
    text, ids = task._split(batch)
    return int(((text >= 0) & ~task._hidden(len(batch), step, 0)[:, None]).sum()) + ids.numel()


HEADINGS = ("captions", "padding", "packed", "samples a second", "packed", "ratio")


def shown(result: dict[str, Any]) -> TextTable:
    """A row for each kind of captions."""
    rows = [
        [r["captions"], f"{r['padding']:.0%}", f"{r['packed_padding']:.0%}", f"{r['samples_per_second']:.1f}",
         f"{r['packed_samples_per_second']:.1f}", f"{r['ratio']:.2f}"]
        for r in result["records"]
    ]  # fmt: skip
    how = result["protocol"]
    note = f"{how['machine']}; rows of at most {how['row']} positions; other work ran (load {how['load']:.1f})"
    return TextTable(HEADINGS, rows, note)


TABLES: Tables = {"packing": ("packing.json", shown)}
