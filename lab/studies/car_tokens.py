"""What a generator makes of tokens: of channels, nested or not, and of patches, three seeds each.

Short runs of small/scenes-car with Muon, every image once, alike but for the tokenizer: small/scenes-tokenizer, its
twin without nested dropout, or that one's twin along patches (as many tokens, in raster order). Tokens of different
tokenizers differ in entropy, so what is compared is what the generators draw (GenEval); nats stand beside those of
counts alone.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from channelvq.car.model import CAR
from channelvq.data.stream import fixed_images
from channelvq.evaluate.geneval.drawing import draw_part
from channelvq.evaluate.next_channel import evaluate_next_channel
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.results import read_result, write_json
from channelvq.images import grid, normalize, save_image, to_pil
from channelvq.report.token_sets import IMAGES, scenes
from channelvq.terminal import terminal_table
from channelvq.train.car_task import CARRecipe
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.store import (
    DEFAULT_STORE,
    generator_key,
    kept_records,
    record,
    run_key,
    trained,
    trained_generator,
)
from lab.studies import car_tokens_geneval, generator

TOKENIZERS: dict[str, tuple[str, ...]] = {
    "nested": (), "not nested": ("nested.alpha=0",), "patch-wise": ("nested.alpha=0", "model.axis=patch"),
}  # fmt: skip
SEEDS = 3
_SHORT = (
    "train.steps=800", "train.evaluate_every=400", "train.checkpoint_every=200", "train.threads=1",
    "objective.train_images=25600", "objective.lm_steps=100", "objective.stage1_steps=50",
    "objective.muon_learning_rate=1e-3",
)  # fmt: skip
VARIANTS = {f"{name}, seed {seed}": (name, seed) for seed in range(SEEDS) for name in TOKENIZERS}


def recipes(variant: str) -> tuple[TokenizerRecipe, CARRecipe]:
    """The resolved recipes of a run: of its tokenizer and its own."""
    name, seed = VARIANTS[variant]
    return tokenizer_recipe(name), load_recipe("small/scenes-car", (*_SHORT, f"train.seed={seed}"), of=CARRecipe)


def tokenizer_recipe(name: str) -> TokenizerRecipe:
    """The resolved recipe of one of TOKENIZERS."""
    return load_recipe("small/scenes-tokenizer", TOKENIZERS[name], of=TokenizerRecipe)


def keys() -> dict[str, str]:
    """The run key of every record of the result."""
    found = {f"{name} tokenizer": run_key(tokenizer_recipe(name)) for name in TOKENIZERS}
    return found | {name: generator_key(*recipes(name)) for name in VARIANTS}


def run(path: Path, store: Path = DEFAULT_STORE, missing: bool = False) -> dict[str, Any]:
    """Train the runs (or take them from the store), measure on held-out scenes, write and return the result.

    missing: only what the result at `path` lacks, each record written at once. Raises InputError where those that are
    there were measured in another way.
    """
    how = _protocol()
    found = kept_records(load(path), path, how, keys()) if missing and path.exists() else {}
    for name, make in _records(store, path.parent):
        if name not in found:
            found[name] = make()
            if missing:
                _write(path, how, found)
    _write(path, how, found)
    return load(path)


def _write(path: Path, how: dict[str, Any], found: dict[str, Any]) -> None:
    write_json(path, {"protocol": how, "records": [found[name] for name in keys() if name in found]})


def _protocol() -> dict[str, Any]:
    _, recipe = recipes(next(iter(VARIANTS)))
    bundled = CAR.from_pretrained("bundled")
    images = fixed_images(scenes(recipe, bundled.tokenizer, "test"), IMAGES)
    return generator.scene_protocol(images) | {"geneval": car_tokens_geneval.how_judged(bundled)}


def _records(store: Path, folder: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names of the records and what makes each."""
    for name in TOKENIZERS:
        yield f"{name} tokenizer", partial(_restored, name, store)
    for variant in VARIANTS:
        yield variant, partial(_measured, variant, store, folder)


def _restored(name: str, store: Path) -> dict[str, Any]:
    """The record of a tokenizer."""
    recipe = tokenizer_recipe(name)
    tokenizer, done = trained(recipe, store)
    _, car_recipe = recipes(f"{name}, seed 0")
    images = fixed_images(scenes(car_recipe, tokenizer, "test"), IMAGES)
    report = evaluate_reconstruction(tokenizer, images)
    return {"name": f"{name} tokenizer"} | record(recipe, done, "scenes", report.to_dict())


def _measured(variant: str, store: Path, folder: Path) -> dict[str, Any]:
    """The record of a generator; of the first seed also a picture."""
    base, recipe = recipes(variant)
    car, done = trained_generator(base, recipe, store)
    sets = generator.token_sets(recipe, car.tokenizer)
    metrics = evaluate_next_channel(car, sets.test, sets.train_ids).to_dict()
    metrics["geneval"] = car_tokens_geneval.measure(car)
    name, seed = VARIANTS[variant]
    if not seed:
        draw_samples(car, folder / f"car-tokens-{name.replace(' ', '-')}.png")
    mine = {"name": variant, "seed": seed, "steps": recipe.train.steps, "parameters": generator.parameters(car)}
    return record(base, done, "scenes", metrics) | mine


def draw_samples(car: CAR, path: Path) -> None:
    """The prompts of the generator study, twice each, drawn as for GenEval."""
    prompts = generator.PROMPTS
    drawn = [draw_part(car, prompts, car_tokens_geneval.SAMPLING, first) for first in (0, len(prompts))]
    save_image(grid(to_pil(normalize(torch.cat(drawn))), len(prompts), captions=[*prompts] * 2, scale=3), path)


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    return read_result(path, ("protocol.n", "records.name", "records.run", "records.metrics"), "make it with --missing")


HEADINGS = ("tokens", "nats (of each seed)", "counts alone", "PSNR of the tokenizer", *car_tokens_geneval.HEADINGS[1:])


def rows(result: dict[str, Any]) -> list[list[str]]:
    """Cells of HEADINGS, a row a tokenizer."""
    of = {row["name"]: row["metrics"] for row in result["records"]}
    found = []
    for name in TOKENIZERS:
        runs = [of[variant] for variant, (tokenizer, _) in VARIANTS.items() if tokenizer == name]
        nats = ", ".join(f"{m['nats']:.3f}" for m in runs)
        psnr = f"{of[f'{name} tokenizer']['psnr']:.2f}"
        scores = car_tokens_geneval.cells([m["geneval"] for m in runs])
        found.append([name, nats, f"{runs[0]['nats_unigram']:.3f}", psnr, *scores])
    return found


def table(result: dict[str, Any]) -> Table:
    """For a terminal: what there is so far."""
    made = [
        [row["name"], f"{m['nats']:.3f}", f"{m['nats_unigram']:.3f}", f"{m['geneval']['scores']['overall']:.3f}"]
        for row in result["records"]
        if "nats" in (m := row["metrics"])
    ]
    title = f"{result['protocol']['n']} held-out scenes; GenEval on the test prompts"
    return terminal_table(("run", "nats", "counts alone", "GenEval"), made, title)
