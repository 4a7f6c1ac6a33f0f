"""Fashion-MNIST from nothing in minutes: what 16 channel tokens and 16 patch tokens restore, and what is drawn by them.

The same start, networks, steps and codes on both axes (small/fashion-tokenizer, small/fashion-patch), then the same
generator (small/fashion-car), three seeds of each. Judged by a classifier that was trained on the real pictures
(lab/clothes.py). The guidance scale is the one whose samples are nearest to the validation pictures, of a few.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.data.fetched.fashion import CLASSES
from channelvq.evaluate.geneval.drawing import draw
from channelvq.evaluate.measures import choose_measures
from channelvq.evaluate.next_channel import evaluate_next_channel
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.results import protocol
from channelvq.evaluate.tables import TextTable
from channelvq.images import grid, normalize, save_image, to_pil
from channelvq.pictures import restored
from channelvq.train.car_task import CARRecipe, token_set
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.clothes import Judge, nearest_training, pictures
from lab.results import read_result
from lab.store import DEFAULT_STORE, generator_key, record, run_key, trained, trained_generator
from lab.study import Study, Tables, collect

HOURS = 1.5
RESULT = "fashion.json"
AXES = {"channels": "small/fashion-tokenizer", "patches": "small/fashion-patch"}
SEEDS = 3
IMAGES = 2_000  # test pictures restored, and samples: 200 of each class
SCALES = (1.5, 2.0, 2.5, 3.0)
SHEET = 6  # rows of the picture of samples
_ONE_CORE = ("train.threads=1", "train.precision=bf16")
VARIANTS = {f"{axis}, seed {seed}": (axis, seed) for seed in range(SEEDS) for axis in AXES}


def recipes(variant: str) -> tuple[TokenizerRecipe, CARRecipe]:
    """The resolved recipes of a run: of its tokenizer and of its generator."""
    axis, seed = VARIANTS[variant]
    changes = (*_ONE_CORE, f"train.seed={seed}")
    tokenizer = load_recipe(AXES[axis], changes, of=TokenizerRecipe)
    return tokenizer, load_recipe("small/fashion-car", changes, of=CARRecipe)


def keys() -> dict[str, str]:
    """The run key of every record of the result."""
    runs = {}
    for name in VARIANTS:
        tokenizer, generator = recipes(name)
        runs[f"{name}, tokenizer"], runs[name] = run_key(tokenizer), generator_key(tokenizer, generator)
    return runs


def run(path: Path, store: Path = DEFAULT_STORE, missing: bool = False) -> dict[str, Any]:
    """Train the runs (or take them from the store), judge, write and return the result; missing: see `Study`."""
    judges = {"test": Judge(store), "validation": Judge(store, "validation")}
    images, labels = pictures("test", IMAGES)
    how = judged_protocol(judges["test"], images, labels)

    def make(name: str) -> dict[str, Any]:
        if name.endswith(", tokenizer"):
            return _restored(name, store, judges["test"], images, labels)
        return _drawn(name, store, judges, path.parent)

    collect(path, how, keys(), make, load if missing else None)
    return load(path)


def judged_protocol(judge: Judge, images: UInt8[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"]) -> dict[str, Any]:
    """What the figures are of and by whom they are judged, with what the judge says of these real pictures."""
    how = protocol(images, data="the first test pictures", split="test", resize="none", crop="none")
    network = "a classifier of 64 features, trained on the real training pictures, seed 0; not Inception"
    of_real = {"accuracy": judge.accuracy, "real": judge(images, labels)}
    return how | {"judge": {"network": network, **of_real, "scales": list(SCALES)}}


def _restored(
    name: str, store: Path, judge: Judge, images: UInt8[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"]
) -> dict[str, Any]:
    recipe, _ = recipes(name.removesuffix(", tokenizer"))
    tokenizer, done = trained(recipe, store)
    report = evaluate_reconstruction(tokenizer, images, measures=choose_measures(images.shape[-1], "none"))
    return {
        "name": name, "judged": judge(restored(tokenizer, images), labels),
    } | record(recipe, done, "fashion-mnist", report.to_dict())  # fmt: skip


def _drawn(name: str, store: Path, judges: dict[str, Judge], folder: Path) -> dict[str, Any]:
    base, recipe = recipes(name)
    car, done = trained_generator(base, recipe, store)
    drawn, pictures_ = judged_samples(car, judges)
    test = token_set(recipe.data, car.tokenizer, "test", IMAGES)
    train = token_set(recipe.data, car.tokenizer, "train", recipe.objective.train_images)
    metrics = evaluate_next_channel(car, test, train.ids).to_dict()
    axis, seed = VARIANTS[name]
    if not seed:
        sheet = to_pil(normalize(pictures_[: SHEET * len(CLASSES)]))
        captions = [*CLASSES, *[""] * (len(sheet) - len(CLASSES))]
        save_image(grid(sheet, len(CLASSES), captions=captions, scale=2), folder / f"fashion-{axis}.png")
    return {"name": name, "seed": seed} | drawn | record(base, done, "fashion-mnist", metrics)


def judged_samples(car: CAR, judges: dict[str, Judge]) -> tuple[dict[str, Any], UInt8[Tensor, "n 3 h w"]]:
    """({"scale", "by_scale", "nearest"}, the samples at that guidance scale): as many of each class.

    judges: of the "test" and of the "validation" pictures; the second choose the scale, the first judge.
    """
    labels = torch.arange(IMAGES) % len(CLASSES)
    prompts = [CLASSES[label] for label in labels.tolist()]
    sets = {scale: draw(car, prompts, SamplingSettings(scale), lambda *_: None) for scale in SCALES}
    best = min(SCALES, key=lambda scale: judges["validation"](sets[scale], labels)["frechet"])
    by_scale = {str(scale): judges["test"](samples, labels) for scale, samples in sets.items()}
    nearest = float(nearest_training(sets[best])[0].median())
    return {"scale": best, "by_scale": by_scale, "nearest": nearest}, sets[best]


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    return read_result(path, ("protocol.judge", "records.name", "records.run", "records.metrics"), "use --missing")


def axes(result: dict[str, Any]) -> TextTable:
    """A row a run: its tokenizer and what is drawn by it."""
    of = {row["name"]: row for row in result["records"]}
    rows = []
    for name in VARIANTS:
        tokens, drawn = of.get(f"{name}, tokenizer"), of.get(name)
        if tokens is None:
            continue
        judged = tokens["judged"]
        cells = [name, f"{tokens['metrics']['psnr']:.2f}", f"{judged['frechet']:.1f}", f"{judged['accuracy']:.3f}"]
        if drawn is not None:
            best = drawn["by_scale"][str(drawn["scale"])]
            minutes = (tokens["seconds"] + drawn["seconds"]) / 60
            cells += [
                f"{drawn['metrics']['nats']:.2f} ({drawn['metrics']['nats_unigram']:.2f})", f"{drawn['scale']:g}",
                f"{best['frechet']:.1f}", f"{best['accuracy']:.3f}", f"{best['precision']:.2f}",
                f"{best['recall']:.2f}", f"{minutes:.0f}",
            ]  # fmt: skip
        rows.append(cells + [""] * (len(HEADINGS) - len(cells)))
    real = result["protocol"]["judge"]["real"]
    note = f"Of {IMAGES:,} real test pictures {real['accuracy']:.1%} are taken for what they are."
    return TextTable(HEADINGS, rows, note=note)


HEADINGS = (
    "tokens", "PSNR", "Frechet, restored", "accuracy, restored", "nats (counts alone)", "guidance", "Frechet, drawn",
    "accuracy, drawn", "precision", "recall", "minutes of one core",
)  # fmt: skip
STUDY = Study(run, load, grows=True)
TABLES: Tables = {"fashion": (RESULT, axes)}
