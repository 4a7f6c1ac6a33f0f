"""`python -m lab bench cost`: time and peak memory of a step over tokens, codes, codeword size, batch and text length.

A point is a process of its own (a fork with one thread): the median processor time of a few steps, and by how much its
memory grew at most. Processor time hardly changes when the machine does other work too; a curve's exponent is the slope
of its last three points in logarithms. Beside it the FLOPs by part at the paper's sizes, counted as `cvq plan` does.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from channelvq.evaluate.plots import blank_figure, save_figure
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.train.car_task import CARRecipe
from channelvq.train.plan import Machine, plan, tokenizer_config
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.bench.cost_parts import (
    HEADS,
    Sizes,
    generator_step,
    gradients_apart,
    head_step,
    isolated,
    lookup_step,
    quantizer_step,
    tokenizing_step,
)
from lab.bench.timing import machine
from lab.study import Tables

Record = dict[str, Any]
REPEATS = 3
# From these each curve leaves in one direction; the generator's steps are those of a small backbone on one core.
QUANTIZER = Sizes(tokens=64, codes=16_384, dim=256, batch=16)
GENERATOR = Sizes(tokens=64, codes=4096, dim=256, batch=2, text=32)
TOKENS, DIMS = (16, 64, 256, 1024), (64, 256, 1024)
CODES = (1024, 4096, 16_384, 65_536, 262_144)
BATCHES, TEXTS = (1, 4, 16), (16, 64, 256, 1024)
LOOKUP = Sizes(tokens=64, codes=16_384, dim=256, batch=16)
TOKENIZED = Sizes(tokens=64, codes=4096, batch=16)  # of the bundled tokenizer; its sizes are what they are
ALL_SIZES: dict[str, Sequence[int]] = {"tokens": TOKENS, "codes": CODES, "dim": DIMS, "batch": BATCHES, "text": TEXTS}
STEPS = {"lookup": lookup_step, "tokenizing": tokenizing_step, "quantizer": quantizer_step, "generator": generator_step}
# What is varied in each, from which sizes.
CURVES: dict[str, tuple[Sizes, dict[str, Sequence[int]]]] = {
    "lookup": (LOOKUP, {name: ALL_SIZES[name] for name in ("tokens", "codes", "dim")}),
    "tokenizing": (TOKENIZED, {"batch": (16, 64, 256)}),
    "quantizer": (QUANTIZER, {name: values for name, values in ALL_SIZES.items() if name != "text"}),
    "generator": (GENERATOR, ALL_SIZES),
}
HEAD = Sizes(tokens=256, codes=65_536, batch=4)
PAPER_TOKENIZERS = ("paper/cvq-16k-256", "paper/cvq-65k")
PAPER_GENERATORS = ("paper/car-4b", "paper/car-8b")
DRAWN = {"seconds": "time", "memory": "memory"}
COLORS = {"lookup": "C2", "tokenizing": "C3", "quantizer": "C0", "generator": "C1"}
NAMES = {"tokens": "tokens C", "codes": "codes N", "dim": "numbers of a codeword D", "batch": "images",
         "text": "text tokens T"}  # fmt: skip


def run(path: Path | None, *, tiny: bool = False, plot: Path | None = None) -> Record:
    """Measure everything and write the result; tiny: sizes of no meaning that take seconds."""
    torch.set_num_threads(1)  # before any work: the points are forks, and threads do not fork
    load = os.getloadavg()[0]
    curves = [curve for what in CURVES for curve in _curves(what, tiny)]
    heads = [_head(how, Sizes(tokens=8, codes=64, batch=2) if tiny else HEAD) for how in HEADS]
    result = {
        "protocol": machine() | {
            "load": load, "load_at_the_end": os.getloadavg()[0], "threads": 1, "repeats": REPEATS, "tiny": tiny,
            "seconds": "median processor time of a step: forward, backward, AdamW",
            "memory": "bytes by which the process grew at most in its steps, optimizer's states included",
            "lookup": "the nearest codeword of each of batch x tokens vectors, no gradient",
            "tokenizing": "`tokenize` of the bundled tokenizer, pixels in memory",
            "quantizer": "the quantizer of kind plain alone, on latents of random numbers",
            "generator": "the whole step of a fresh backbone of 6 layers of width 256 (its settings without others)",
            "head_share": "processor time of head and cross entropy alone, forward, backward and AdamW, over the step",
            "exponent": "slope of the last three points in logarithms",
            "from": {what: asdict(sizes) for what, (sizes, _) in CURVES.items()},
        },
        "curves": curves,
        "heads": heads,
        "paper": [*map(tokenizer_flops, PAPER_TOKENIZERS), *map(generator_flops, PAPER_GENERATORS)],
    }  # fmt: skip
    if path is not None:
        write_json(path, result)
        draw(result, plot or path.with_suffix(".png"))
    return result


# Measured


def _curves(what: str, tiny: bool) -> Iterator[Record]:
    sizes, over = CURVES[what]
    if tiny:
        sizes = Sizes(tokens=4, codes=64, dim=16, batch=2, text=8)
    for name, values in over.items():
        points = [_point(what, replace(sizes, **{name: value}), value) for value in ([4, 16] if tiny else values)]
        yield {"of": what, "over": name, "points": points,
               "exponent": exponent(points, "seconds"), "memory_exponent": exponent(points, "memory")}  # fmt: skip


def _point(what: str, sizes: Sizes, value: int) -> Record:
    whole = isolated(lambda: STEPS[what](sizes), REPEATS)
    if what != "generator":
        return {"at": value, **whole}
    head = isolated(lambda: head_step("whole", sizes), REPEATS)
    return {"at": value, **whole, "head_seconds": head["seconds"], "head_share": head["seconds"] / whole["seconds"]}


def _head(how: str, sizes: Sizes) -> Record:
    found = isolated(lambda: head_step(how, sizes), REPEATS)
    apart = isolated(lambda: partial(gradients_apart, how, sizes), 1)["apart"]
    rows = sizes.tokens * sizes.batch
    return {"how": how, "rows": rows, "codes": sizes.codes, **found, "apart": apart,
            "logits": 4 * rows * sizes.codes}  # fmt: skip


def exponent(points: Sequence[Record], key: str) -> float:
    """The slope of log(key) over log(at) of the last three points."""
    last = [(math.log(point["at"]), math.log(max(point[key], 1e-9))) for point in points[-3:]]
    mean_x, mean_y = (sum(column) / len(last) for column in zip(*last, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in last) / sum((x - mean_x) ** 2 for x, _ in last)


# Calculated


def tokenizer_flops(name: str) -> Record:
    """FLOPs of the forward pass of an image, by part: the lookup, and the networks together."""
    recipe = load_recipe(name, of=TokenizerRecipe)
    made, model = plan(name, recipe, Machine()), recipe.model
    lookup = 2.0 * model.num_tokens * model.quantizer.codebook_size * model.codebook_dim
    return {"recipe": name, "flops": made.forward_flops, "parts": {
        "lookup": lookup, "encoder, decoder, discriminator": made.forward_flops - lookup}}  # fmt: skip


def generator_flops(name: str) -> Record:
    """The same of a generator; the head only at the image's tokens, where its scores are used."""
    recipe = load_recipe(name, of=CARRecipe)
    made, model = plan(name, recipe, Machine()), tokenizer_config(recipe)
    backbone = next(part.parameters for part in made.parts if part.name == "backbone")
    width, layers = _shape(recipe)
    n = recipe.model.max_text_tokens + model.num_tokens
    parts = {
        "backbone's layers": 2.0 * n * backbone,
        "attention": 2.0 * layers * n * n * width,
        "head": 2.0 * model.num_tokens * width * model.quantizer.codebook_size,
        "projector": 2.0 * model.num_tokens * (model.codebook_dim * width + width * width),
    }
    return {"recipe": name, "flops": sum(parts.values()), "parts": parts, "tokens": model.num_tokens,
            "codes": model.quantizer.codebook_size, "text": recipe.model.max_text_tokens,
            "logits_an_image": 4.0 * model.num_tokens * model.quantizer.codebook_size}  # fmt: skip


def _shape(recipe: CARRecipe) -> tuple[int, int]:
    from channelvq.car.backbone import PUBLISHED

    settings = PUBLISHED[str(recipe.model.backbone)]
    return settings["hidden_size"], settings["num_hidden_layers"]


# Shown


def shown(result: Record) -> TextTable:
    """A row for each curve: from its first to its last point."""
    rows = []
    for curve in result["curves"]:
        first, last = curve["points"][0], curve["points"][-1]
        share = f"{first['head_share']:.0%} to {last['head_share']:.0%}" if "head_share" in first else ""
        rows.append([
            curve["of"], NAMES[curve["over"]], f"{first['at']:,} to {last['at']:,}",
            f"{1000 * first['seconds']:,.0f} to {1000 * last['seconds']:,.0f}", f"{curve['exponent']:.2f}",
            f"{first['memory'] / 1e6:,.0f} to {last['memory'] / 1e6:,.0f}", f"{curve['memory_exponent']:.2f}", share,
        ])  # fmt: skip
    protocol = result["protocol"]
    note = f"{protocol['machine']}; one thread, processor time, at a load of {protocol['load']:.1f}."
    headings = ("of", "over", "values", "ms", "exponent", "MB", "exponent (memory)", "head's share")
    return TextTable(headings, rows, note=note)


def shown_heads(result: Record) -> TextTable:
    """Ways of the head's loss, beside that which holds all logits."""
    base = result["heads"][0]
    rows = [
        [HEADS[row["how"]], f"{1000 * row['seconds']:,.0f}", f"{row['seconds'] / base['seconds']:.2f}",
         f"{row['memory'] / 1e6:,.0f}", f"{row['memory'] / base['memory']:.2f}",
         f"{row['apart']:.1e}" if row["apart"] else "equal"]
        for row in result["heads"]
    ]  # fmt: skip
    note = (
        f"{base['rows']:,} rows of {base['codes']:,} codes: all logits are {base['logits'] / 1e6:,.0f} MB; last: the "
        "largest difference of a gradient, relative to the largest gradient."
    )
    return TextTable(("head and loss", "ms", "over all logits", "MB", "over all logits ", "gradient"), rows, note=note)


def shown_paper(result: Record) -> TextTable:
    """Shares of the forward pass at the paper's sizes, by calculation."""
    rows = [
        [row["recipe"], f"{row['flops'] / 1e12:.2f}", part, f"{flops / 1e9:,.1f}", f"{flops / row['flops']:.2%}"]
        for row in result["paper"]
        for part, flops in row["parts"].items()
    ]
    return TextTable(("recipe", "TFLOP an image", "part", "GFLOP", "share"), rows)


def draw(result: Record, path: Path) -> None:
    """Time and memory over each of the sizes, for both kinds of step, on logarithmic axes."""
    figure = blank_figure(4 * len(NAMES), 4.6)
    for place, (name, words) in enumerate(NAMES.items()):
        axes = figure.add_subplot(1, len(NAMES), place + 1)
        for curve in (curve for curve in result["curves"] if curve["over"] == name):
            at = [point["at"] for point in curve["points"]]
            for (key, label), style in zip(DRAWN.items(), ("-", "--"), strict=True):
                over = [point[key] / curve["points"][0][key] for point in curve["points"]]
                axes.plot(at, over, style, marker="o", color=COLORS[curve["of"]], label=f"{curve['of']}, {label}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(words)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("over that of the first point")
    named = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=4)
    save_figure(figure, path)


TABLES: Tables = {
    "cost": ("cost.json", shown),
    "cost-head": ("cost.json", shown_heads),
    "cost-paper": ("cost.json", shown_paper),
}
