"""`python -m lab bench ranks`: the same training by one, two and four processes; how far apart the weights end.

Gloo processes of this machine by torchrun, each with its share of the same global batch. A tiny tokenizer with its
discriminator and its moving average, and a tiny generator with its moving average; what is compared is final/, which
holds the averages, and the optimizers' weights in the last checkpoint.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from lab.bench.timing import machine
from lab.study import Tables

RANKS = (1, 2, 4)
STEPS, BATCH = 6, 8
# Where a gradient is rounding alone, Adam makes a step of it: a lower rate than the recipes' keeps that small.
SHARED = (
    f"train.batch_size={BATCH}", "train.ema=0.9", "train.device=cpu", "train.precision=no", "train.log_every=1",
    "train.learning_rate=5e-4", "train.warmup_steps=2", "data.validation_images=4", f"train.steps={STEPS}",
)  # fmt: skip
TOKENIZER = (
    "small/smoke", "model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8",
    "model.quantizer.codebook_size=16", "objective.start_images=8",
    "objective.adversarial={base_channels: 8, layers: 1, start_step: 0, adaptive: false}", *SHARED,
)  # fmt: skip
GENERATOR = (
    "small/scenes-car", "train.compile=false", "data.sources.scenes.sprites=shapes", "model.max_text_tokens=64",
    "objective.train_images=16", "objective.text_vocab_size=300", "model.backbone.hidden_size=32",
    "model.backbone.num_hidden_layers=1", "model.backbone.num_attention_heads=2", "objective.lm_steps=1",
    "objective.stage1_steps=2", *SHARED,
)  # fmt: skip


def run(path: Path | None, ranks: tuple[int, ...] = RANKS) -> dict[str, Any]:
    """Train both by each number of processes; writes and returns the result."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ranks-") as place:
        folder = Path(place)
        records = compared("tokenizer", TOKENIZER, ranks, folder)
        tokenizer = folder / f"tokenizer-{ranks[0]}" / "final"
        records += compared("generator", (*GENERATOR, f"tokenizer={tokenizer}"), ranks, folder)
    protocol = machine() | {
        "load": load, "steps": STEPS, "global_batch": BATCH, "backend": "gloo, by torchrun, on the CPU",
        "weights": "largest difference of a trained weight to those of one process",
        "average": "the same of their moving averages, which final/ holds",
        "moved": "the largest change of a weight by this training, of the average",
        "loss": "largest relative difference of the logged sum of loss terms, over all steps",
    }  # fmt: skip
    result = {"protocol": protocol, "ranks": records}
    if path is not None:
        write_json(path, result)
    return result


def compared(what: str, recipe: tuple[str, ...], ranks: tuple[int, ...], folder: Path) -> list[dict[str, Any]]:
    """A record for each number of processes; the first one is what the others are compared with."""
    first = folder / f"{what}-{ranks[0]}"
    records = []
    for number in ranks:
        place = folder / f"{what}-{number}"
        seconds = train(number, place, recipe)
        last, start = (weights(place, step) for step in (STEPS, 1))
        records.append({
            "what": what, "ranks": number, "seconds": seconds,
            "weights": apart(last, weights(first, STEPS)),
            "average": apart(final(place), final(first)),
            "moved": apart(last, start),
            "loss": max(abs(a - b) / abs(b) for a, b in zip(losses(place), losses(first), strict=True)),
        })  # fmt: skip
    return records


def train(ranks: int, place: Path, recipe: tuple[str, ...]) -> float:
    """Seconds of the command."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    settings = (*recipe, f"train.output_dir={place}", "train.checkpoint_every=1", f"train.keep_checkpoints={STEPS}")
    # torchrun gives each process one thread, so one process gets one too: two threads add up in another order, and Adam
    # makes whole steps of what is left where a gradient is zero.
    environment = os.environ | {"CHANNELVQ_CACHE": str(place.parent / "cache"), "OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    command = [sys.executable, *launcher, "-m", "channelvq", "train", *settings]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise InputError(f"bench ranks: {ranks} processes ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return time.perf_counter() - begin


def weights(place: Path, step: int) -> dict[str, Tensor]:
    """What the optimizers update, after a step; the discriminator's too."""
    files = sorted((place / f"checkpoints/step-{step:08d}").glob("model*.safetensors"))
    return {f"{file.stem}.{name}": weight for file in files for name, weight in load_file(file).items()}


def final(place: Path) -> dict[str, Tensor]:
    """What the run gives: the averages."""
    return load_file(place / "final/model.safetensors")


def losses(place: Path) -> list[float]:
    """The sum of the terms that each step logged."""
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    left_out = ("step", "images_per_second", "batch_use", "psnr", "kind", "learning_rate")
    return [
        sum(value for key, value in line.items() if key not in left_out and isinstance(value, float))
        for line in lines if line["kind"] == "train"
    ]  # fmt: skip


def apart(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The largest difference of two sets of weights."""
    floats = [name for name, weight in others.items() if weight.is_floating_point()]
    return max(float(torch.max(torch.abs(some[name].double() - others[name].double()))) for name in floats)


def shown(result: dict[str, Any]) -> TextTable:
    """A row for each training."""
    rows = [
        [row["what"], str(row["ranks"]), f"{row['weights']:.1e}", f"{row['average']:.1e}", f"{row['moved']:.1e}",
         f"{row['loss']:.1e}"]
        for row in result["ranks"]
    ]  # fmt: skip
    protocol = result["protocol"]
    note = (
        f"{protocol['steps']} steps of a global batch of {protocol['global_batch']}; differences to one process: the "
        "largest of a weight, of its moving average, and, relative, of a step's loss."
    )
    headings = ("training", "processes", "weights", "averages", "weights moved by", "loss")
    return TextTable(headings, rows, note=note)


TABLES: Tables = {"ranks": ("scale.json", shown)}
