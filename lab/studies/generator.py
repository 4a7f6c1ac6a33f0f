"""Next-channel prediction: nested dropout or not, three sizes, exposure bias.

Short runs of small/scenes-car, each on a tokenizer of small/scenes-tokenizer: the nested one or its twin without nested
dropout, three seeds each, and two other sizes on the nested one. Tokens of different tokenizers differ in entropy, so
nats are compared with the counts of each tokenizer's own channels ("unigram"), not with each other alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from channelvq.car.model import CAR
from channelvq.errors import InputError
from channelvq.evaluate.metrics import with_interval
from channelvq.evaluate.next_channel import evaluate_next_channel
from channelvq.evaluate.plots import channel_curves, check_plot
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.results import protocol, write_json
from channelvq.evaluate.tables import TextTable
from channelvq.images import grid, save_image
from channelvq.report.token_sets import TokenSets, parameters, token_sets
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import CARRecipe
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.results import read_result
from lab.store import DEFAULT_STORE, generator_key, record, run_key, trained, trained_generator
from lab.study import Study, Tables, prefix_table

HOURS = 2.5
RESULT = "generator-small.json"
TOKENIZERS: dict[str, tuple[str, ...]] = {"nested": (), "not nested": ("nested.alpha=0",)}
_SHORT = (
    "train.steps=700", "train.batch_size=64", "train.evaluate_every=350", "train.compile=null",
    "objective.lm_steps=100", "objective.stage1_steps=100",
)  # fmt: skip


def _size(hidden: int, layers: int, heads: int) -> tuple[str, ...]:
    return (
        f"model.backbone.hidden_size={hidden}", f"model.backbone.num_hidden_layers={layers}",
        f"model.backbone.num_attention_heads={heads}", f"model.backbone.intermediate_size={3 * hidden}",
    )  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One run: on which tokenizer, and what it changes in small/scenes-car."""

    tokenizer: str
    overrides: tuple[str, ...]


VARIANTS: dict[str, Variant] = {
    **{
        f"{tokenizer}, seed {seed}": Variant(tokenizer, (*_SHORT, f"train.seed={seed}"))
        for seed in range(3)
        for tokenizer in TOKENIZERS
    },
    "small": Variant("nested", (*_SHORT, *_size(128, 4, 2))),
    "large": Variant("nested", (*_SHORT, *_size(384, 6, 6))),
}
PROMPTS = (
    "a photo of two bananas", "a photo of a dog", "a photo of a red car and a blue umbrella",
    "a photo of a cat left of a chair", "a photo of three apples", "a photo of a green bus",
)  # fmt: skip


def recipes(variant: Variant) -> tuple[TokenizerRecipe, CARRecipe]:
    """The resolved recipes of a run: of its tokenizer and its own."""
    return (
        load_recipe("small/scenes-tokenizer", TOKENIZERS[variant.tokenizer], of=TokenizerRecipe),
        load_recipe("small/scenes-car", variant.overrides, of=CARRecipe),
    )


def keys() -> dict[str, str]:
    """The run key of every record of the result."""
    tokenizers = {
        f"{name} tokenizer": run_key(load_recipe("small/scenes-tokenizer", overrides, of=TokenizerRecipe))
        for name, overrides in TOKENIZERS.items()
    }
    return tokenizers | {name: generator_key(*recipes(variant)) for name, variant in VARIANTS.items()}


def run(path: Path, store: Path = DEFAULT_STORE) -> dict[str, Any]:
    """Train the runs (or take them from the store), measure on held-out scenes, write and return the result."""
    check_plot()
    _, first = recipes(next(iter(VARIANTS.values())))
    records, sets, shown = [], {}, {}
    for name, overrides in TOKENIZERS.items():
        recipe = load_recipe("small/scenes-tokenizer", overrides, of=TokenizerRecipe)
        tokenizer, done = trained(recipe, store)
        sets[name] = token_sets(first, tokenizer)
        report = evaluate_reconstruction(tokenizer, sets[name].images)
        records.append({"name": f"{name} tokenizer"} | record(recipe, done, "scenes", report.to_dict()))
    for name, variant in VARIANTS.items():
        car, entry = _measured(variant, sets[variant.tokenizer], store)
        records.append({"name": name} | entry)
        shown.setdefault(variant.tokenizer, car)
    write_json(path, {"protocol": scene_protocol(sets["nested"].images), "records": records})
    result = load(path)
    draw_plots(result, path.parent)
    draw_samples(shown, path.parent / "generator-samples.png")
    return result


def scene_protocol(images: UInt8[Tensor, "n 3 h w"], tokenizer: CVQTokenizer | None = None) -> dict[str, Any]:
    """How scenes are measured."""
    return protocol(images, data="captioned scenes of Fluent sprites, combinations of the test split", split="test",
                    resize="drawn at 64 px", crop="none", tokenizer=tokenizer)  # fmt: skip


def _measured(variant: Variant, sets: TokenSets, store: Path) -> tuple[CAR, dict[str, Any]]:
    tokenizer_recipe, recipe = recipes(variant)
    car, done = trained_generator(tokenizer_recipe, recipe, store)
    metrics = evaluate_next_channel(car, sets.test, sets.train_ids).to_dict()
    mine = {"seed": recipe.train.seed, "steps": recipe.train.steps, "parameters": parameters(car)}
    return car, record(tokenizer_recipe, done, "scenes", metrics) | mine


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    remedy = "make it with --rerun"
    result = read_result(path, ("protocol.n", "records.name", "records.metrics"), remedy)
    if not any("nats" in record["metrics"] for record in result["records"]):
        raise InputError(f"{path}: a result of another kind: no record has the metric nats; {remedy}")
    return result


def seed_means(result: Mapping[str, Any], tokenizer: str) -> dict[str, list[float]]:
    """By channel, the mean over seeds of what is measured for one tokenizer; free runs as "free after k"."""
    rows = [r["metrics"]["by_channel"] for r in result["records"] if r["name"].startswith(f"{tokenizer}, seed")]
    flat = [
        {k: v for k, v in row.items() if k != "free_running"}
        | {f"free after {k}": v for k, v in row["free_running"].items()}
        for row in rows
    ]
    return {key: torch.tensor([row[key] for row in flat]).mean(0).tolist() for key in flat[0]}


def draw_plots(result: Mapping[str, Any], folder: Path) -> None:
    """generator-nats.png, generator-caption.png (what the right caption saves) and generator-exposure.png."""
    means = {tokenizer: seed_means(result, tokenizer) for tokenizer in TOKENIZERS}
    names = {"nats": "", "nats_shuffled": ", other caption", "nats_unigram": ", counts alone"}
    nats = {f"{name}{words}": (0, mean[key]) for name, mean in means.items() for key, words in names.items()}
    channel_curves(nats, "nats a token", folder / "generator-nats.png")
    saved = {
        name: (0, [b - a for a, b in zip(mean["nats"], mean["nats_shuffled"], strict=True)])
        for name, mean in means.items()
    }
    channel_curves(saved, "nats that the right caption saves", folder / "generator-caption.png")
    nested = means["nested"]
    own = {key: (int(key.split()[-1]), values) for key, values in nested.items() if key.startswith("free")}
    channel_curves({"told the truth": (0, nested["top1"])} | own, "accuracy", folder / "generator-exposure.png")


def draw_samples(cars: Mapping[str, CAR], path: Path) -> None:
    """The same prompts and seeds by each generator."""
    pictures = [
        image for car in cars.values() for seed in (0, 100) for image in car.generate(PROMPTS, seed=seed).images
    ]
    captions = [f"{name}: {prompt}" for name in cars for _ in range(2) for prompt in PROMPTS]
    save_image(grid(pictures, len(PROMPTS), captions=captions, scale=3), path)


HEADINGS = ("run", "parameters", "nats (95 %)", "other caption", "counts alone", "top-1", "seconds")


def generators(result: Mapping[str, Any]) -> TextTable:
    """Nats and accuracy of every run."""
    rows = [
        [
            row["name"],
            f"{sum(row['parameters'].values()) / 1e6:.1f} M",
            with_interval(m, "nats"),
            f"{m['nats_shuffled']:.3f}", f"{m['nats_unigram']:.3f}", f"{m['top1']:.1%}", f"{row['seconds']:.0f}",
        ]
        for row in result["records"]
        if "nats" in (m := row["metrics"])
    ]  # fmt: skip
    return TextTable(HEADINGS, rows, f"{result['protocol']['n']} held-out scenes")


def scene_tokenizers(result: Mapping[str, Any]) -> TextTable:
    """PSNR of the tokenizers at every prefix."""
    return prefix_table([row for row in result["records"] if "prefixes" in row["metrics"]])


STUDY = Study(run, load)
TABLES: Tables = {"generators": (RESULT, generators), "scene-tokenizers": (RESULT, scene_tokenizers)}
