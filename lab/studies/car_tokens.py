"""Generators on channels, nested or not, and on patches: what they draw, by GenEval.

Three seeds each, short runs of small/scenes-car with Muon, every image once, alike but for the tokenizer:
small/scenes-tokenizer, its twin without nested dropout, or that one's twin along patches (as many tokens, in raster
order). Tokens of different tokenizers differ in entropy, so what is compared is what the generators draw (GenEval);
nats stand beside those of counts alone.
"""

from pathlib import Path
from typing import Any

import torch

from channelvq.car.model import CAR
from channelvq.data.stream import fixed_images
from channelvq.evaluate.geneval.drawing import draw_part
from channelvq.evaluate.next_channel import evaluate_next_channel
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.tables import TextTable
from channelvq.images import grid, normalize, save_image, to_pil
from channelvq.report.token_sets import IMAGES, scenes
from channelvq.train.car_task import CARRecipe
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab import geneval_of_kinds
from lab.results import read_result
from lab.store import DEFAULT_STORE, generator_key, record, run_key, trained, trained_generator
from lab.studies import generator
from lab.study import Study, Tables, collect

HOURS = 4
RESULT = "car-tokens-small.json"

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
    tokenizers = {f"{name} tokenizer": run_key(tokenizer_recipe(name)) for name in TOKENIZERS}
    return tokenizers | {name: generator_key(*recipes(name)) for name in VARIANTS}


def run(path: Path, store: Path = DEFAULT_STORE, missing: bool = False) -> dict[str, Any]:
    """Train the runs (or take them from the store), measure on held-out scenes, write and return the result.

    missing: only what the result at `path` lacks, each record written at once. Raises InputError where those that are
    there were measured in another way.
    """

    def make(name: str) -> dict[str, Any]:
        tokenizer = name.removesuffix(" tokenizer")
        return _restored(tokenizer, store) if tokenizer in TOKENIZERS else _measured(name, store, path.parent)

    collect(path, _protocol(), keys(), make, load if missing else None)
    return load(path)


def _protocol() -> dict[str, Any]:
    _, recipe = recipes(next(iter(VARIANTS)))
    bundled = CAR.from_pretrained("bundled")
    images = fixed_images(scenes(recipe, bundled.tokenizer, "test"), IMAGES)
    return generator.scene_protocol(images) | {"geneval": geneval_of_kinds.how_judged(bundled)}


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
    metrics["geneval"] = geneval_of_kinds.measure(car)
    name, seed = VARIANTS[variant]
    if not seed:
        draw_samples(car, folder / f"car-tokens-{name.replace(' ', '-')}.png")
    mine = {"name": variant, "seed": seed, "steps": recipe.train.steps, "parameters": generator.parameters(car)}
    return record(base, done, "scenes", metrics) | mine


def draw_samples(car: CAR, path: Path) -> None:
    """The prompts of the generator study, twice each, drawn as for GenEval."""
    prompts = generator.PROMPTS
    drawn = [draw_part(car, prompts, geneval_of_kinds.SAMPLING, first) for first in (0, len(prompts))]
    save_image(grid(to_pil(normalize(torch.cat(drawn))), len(prompts), captions=[*prompts] * 2, scale=3), path)


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    return read_result(path, ("protocol.n", "records.name", "records.run", "records.metrics"), "make it with --missing")


HEADINGS = ("tokens", "nats (of each seed)", "counts alone", "PSNR of the tokenizer", *geneval_of_kinds.HEADINGS[1:])


def kinds_of_tokens(result: dict[str, Any]) -> TextTable:
    """A row a tokenizer: means over the seeds of the generators on it, as far as these are there."""
    of = {row["name"]: row["metrics"] for row in result["records"]}
    rows = []
    for name in TOKENIZERS:
        runs = [of[variant] for variant, (tokenizer, _) in VARIANTS.items() if tokenizer == name and variant in of]
        if not runs:
            continue
        nats = ", ".join(f"{m['nats']:.3f}" for m in runs)
        psnr = f"{of[f'{name} tokenizer']['psnr']:.2f}"
        scores = geneval_of_kinds.cells([m["geneval"] for m in runs])
        rows.append([name, nats, f"{runs[0]['nats_unigram']:.3f}", psnr, *scores])
    return TextTable(HEADINGS, rows)


STUDY = Study(run, load, grows=True)
TABLES: Tables = {
    "car-tokens": (RESULT, kinds_of_tokens), "car-tokens-claims": (RESULT, geneval_of_kinds.claims),
}  # fmt: skip
