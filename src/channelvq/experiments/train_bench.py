"""`cvq bench train`: what the engine adds to a step, and the quantizer's share of one.

A step of the engine is measured beside one of a plain PyTorch loop with the same model, losses and optimizers, the data
already in memory, in turns; a ratio is that of two neighbouring steps, and the median over rounds is kept.
"""

import copy
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from rich.table import Table
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from channelvq.data.stream import position_generator
from channelvq.evaluate.report import git_revision, write_json
from channelvq.losses.adversarial import adaptive_weight, hinge_discriminator, hinge_generator, prefix_weights, ramp
from channelvq.nested import draw_keep, keep_mask
from channelvq.train.engine import Engine, schedule
from channelvq.train.run import load_tokenizer_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

Step = Callable[[Tensor, int], object]
DRAWN = ("data.sources.scenes={kind: scenes, sprites: shapes, weight: 1}", "data.validation_images=8")
SMALL = (*DRAWN, *(f"data.sources.{name}.weight=0" for name in ("fluent", "noto", "twemoji", "photos")),
         "objective.start_images=128")  # fmt: skip
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "pixel loss, 64 px": ("small/bundled", SMALL),
    "full recipe, 64 px": ("small/full", (*SMALL, "objective.adversarial.start_step=0")),
}
# LPIPS takes part with our network in its place, which is smaller, so the share is rather too large than too small.
PAPER = ("paper/cvq-16k-256", (*DRAWN, "data.sources.imagenet.weight=0", "train.data_workers=0", "train.batch_size=1",
                               "objective.perceptual.network=bundled", "objective.start_images=64"))  # fmt: skip


def run(rounds: int, path: Path | None, *, extra: Sequence[str] = (), paper_extra: Sequence[str] = ()) -> dict[str, Any]:
    """Measure and write the result. extra, paper_extra: overrides of the small and of the paper's recipe."""
    records = [_overhead(name, load_tokenizer_recipe(recipe, [*settings, *extra]), rounds)
               for name, (recipe, settings) in CASES.items()]  # fmt: skip
    records.append(_share(load_tokenizer_recipe(PAPER[0], [*PAPER[1], *paper_extra]), max(3, rounds // 4)))
    result = {"protocol": _protocol(rounds), "records": records}
    if path is not None:
        write_json(path, result)
    return result


def _protocol(rounds: int) -> dict[str, Any]:
    return {
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "ratio": "median over rounds of the time of one step over that of the other, in turns; data in memory",
        "plain": "a PyTorch loop with the same model, losses, optimizers, clipping, schedule and moving average",
        "share": "forward, backward and optimizer step of the quantizer alone over a step of the engine",
        "torch": torch.__version__,
        "git": git_revision(),
    }


def _overhead(name: str, recipe: TokenizerRecipe, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        engine, batch = build(recipe, Path(folder))
        plain = plain_loop(*_twins(engine), recipe)
        ours, theirs = _in_turns((engine.step, plain), batch, rounds)
    return {"case": name, "batch": len(batch), "milliseconds": 1000 * statistics.median(ours),
            "plain_milliseconds": 1000 * statistics.median(theirs),
            "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True))}  # fmt: skip


def _share(recipe: TokenizerRecipe, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        engine, batch = build(recipe, Path(folder))
        steps, parts = _in_turns((engine.step, quantizer_alone(engine)), batch, rounds)
    return {"case": "quantizer of paper/cvq-16k-256", "batch": len(batch),
            "milliseconds": 1000 * statistics.median(steps), "quantizer_milliseconds": 1000 * statistics.median(parts),
            "share": statistics.median(a / b for a, b in zip(parts, steps, strict=True))}  # fmt: skip


def build(recipe: TokenizerRecipe, folder: Path) -> tuple[Engine, UInt8[Tensor, "B 3 H W"]]:
    """An engine that is ready for its first step, and a batch."""
    settings = copy.replace if False else None
    del settings
    from dataclasses import replace

    recipe = replace(recipe, train=replace(recipe.train, output_dir=str(folder)))
    task = TokenizerTask(recipe)
    engine = Engine(task, recipe.train, recipe)
    task.start()
    return engine, next(task.batches(0, 0, 1))
