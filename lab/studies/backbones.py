"""One small generator on five backbones: nats on held-out clothes, what is drawn, and what works with each.

small/fashion-car, shortened, on the tokenizer of bundled-fashion: fresh Qwen3, Llama, Mistral, Gemma 3 and GPT-2 of the
same width, depth and heads. Their parameters differ where their layers do. Clothes, because generators of scenes are at
GenEval's floor after so short a training, whatever their backbone. What works is tried on each trained one: sampling
from the cache against the model without it, prompts of different lengths together against each alone, the export for
transformers and that for llama.cpp.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from channelvq.car.export import export_car
from channelvq.car.gguf_export import export_gguf
from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.data.fetched.fashion import CLASSES
from channelvq.errors import InputError
from channelvq.evaluate.geneval.drawing import draw
from channelvq.evaluate.metrics import with_interval
from channelvq.evaluate.next_channel import evaluate_next_channel
from channelvq.evaluate.results import library_versions
from channelvq.evaluate.tables import TextTable
from channelvq.nn.modes import evaluating
from channelvq.report.token_sets import parameters
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import CARRecipe, token_set
from channelvq.train.run import load_recipe
from lab.clothes import Judge, pictures
from lab.results import read_result
from lab.store import DEFAULT_STORE, saved_generator_key, trained_saved_generator
from lab.studies.fashion import IMAGES, judged_protocol
from lab.study import Study, Tables, collect

HOURS = 1.0
RESULT = "backbones.json"

STEPS, WIDTH, LAYERS, HEADS = 400, 192, 6, 4
SCALE = 2.5  # of guidance, for all
_ALIKE: dict[str, Any] = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 3 * WIDTH,
}  # fmt: skip
BACKBONES: dict[str, dict[str, Any]] = {
    "Qwen3": _ALIKE | {"model_type": "qwen3"},
    "Llama": _ALIKE | {"model_type": "llama"},
    "Mistral": _ALIKE | {"model_type": "mistral"},
    "Gemma 3": _ALIKE | {"model_type": "gemma3_text"},
    "GPT-2": {"model_type": "gpt2", "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": 3 * WIDTH,
              "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},  # the others have no dropout
}  # fmt: skip
SEEDS = 2
_SHORT = ("tokenizer=bundled-fashion", f"train.steps={STEPS}", "train.threads=1", "train.precision=bf16")
VARIANTS = {f"{name}, seed {seed}": (name, seed) for seed in range(SEEDS) for name in BACKBONES}


def recipe(variant: str, extra: Sequence[str] = ()) -> CARRecipe:
    """The resolved recipe of a run."""
    name, seed = VARIANTS[variant]
    base = load_recipe("small/fashion-car", (*_SHORT, f"train.seed={seed}", *extra), of=CARRecipe)
    return replace(base, model=replace(base.model, backbone=BACKBONES[name]))


def keys(extra: Sequence[str] = ()) -> dict[str, str]:
    """The run key of every record of the result."""
    return {name: saved_generator_key(recipe(name, extra)) for name in VARIANTS}


def run(path: Path, store: Path = DEFAULT_STORE, missing: bool = False, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Train the runs (or take them from the store), measure, write and return the result.

    missing: only what the result at `path` lacks, each record written at once. extra: settings of every run.
    """
    judge, (images, labels) = Judge(store), pictures("test", IMAGES)
    first = recipe(next(iter(VARIANTS)), extra)
    tokenizer = CVQTokenizer.from_pretrained(first.tokenizer)
    test = token_set(first.data, tokenizer, "test", IMAGES)
    train = token_set(first.data, tokenizer, "train", first.objective.train_images)
    how = judged_protocol(judge, images, labels) | {"transformers": library_versions(("transformers",)), "scale": SCALE}
    asked = torch.arange(IMAGES) % len(CLASSES)
    prompts = [CLASSES[label] for label in asked.tolist()]

    def make(name: str) -> dict[str, Any]:
        mine = recipe(name, extra)
        car, done = trained_saved_generator(mine, store)
        metrics = evaluate_next_channel(car, test, train.ids).to_dict()
        del metrics["by_channel"]
        drawn = judge(draw(car, prompts, SamplingSettings(SCALE), lambda *_: None), asked)
        kind, seed = VARIANTS[name]
        return {"name": name, "backbone": kind, "seed": seed, "steps": mine.train.steps, **done, "drawn": drawn,
                "parameters": parameters(car), "metrics": metrics, "works": works(car)}  # fmt: skip

    collect(path, how, keys(extra), make, load if missing else None)
    return load(path)


def works(car: CAR) -> dict[str, str]:
    """By what is tried, "yes" or what is said or seen instead; the generator is as it was afterwards."""
    with tempfile.TemporaryDirectory(prefix="backbones-") as folder:
        return {
            "cached": _said(lambda: cached_equals_naive(car)),
            "together": _said(lambda: together_equals_alone(car)),
            "export": _said(lambda: export_car(car, Path(folder) / "export")),
            "gguf": _said(lambda: export_gguf(car, Path(folder) / "gguf")),
        }


def _said(attempt: Callable[[], object]) -> str:
    try:
        found = attempt()
    except InputError as error:
        return str(error)
    return found if isinstance(found, str) else "yes"


@torch.no_grad()
def cached_equals_naive(car: CAR) -> str:
    """Whether the likeliest ids by the cached sampler are those of whole passes without cache and padding."""
    ids = car.generate(CLASSES, temperature=0, guidance_scale=1.0).ids
    same = 0
    with evaluating(car):
        for prompt, row in zip(CLASSES, ids, strict=True):
            text = car.text.encode(prompt, car.max_text_tokens)
            words = text.ids[text.mask][None]
            naive = car(words, torch.ones_like(words, dtype=torch.bool), row[None]).logits.argmax(-1)
            same += int((naive == row).sum())
    return "yes" if same == ids.numel() else f"{same} of {ids.numel()} ids are equal"


def together_equals_alone(car: CAR) -> str:
    """Whether the ids of prompts of different lengths do not depend on their neighbours."""
    ids = car.generate(CLASSES, seed=0).ids
    alone = torch.cat([car.generate(prompt, seed=seed).ids for seed, prompt in enumerate(CLASSES)])
    same = int((ids == alone).sum())
    return "yes" if same == ids.numel() else f"{same} of {ids.numel()} ids are equal"


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    needs = ("protocol.n", "records.name", "records.run", "records.metrics.nats", "records.drawn", "records.works")
    return read_result(path, needs, "make it with --missing")


def backbones(result: Mapping[str, Any]) -> TextTable:
    """A row a run."""
    rows = [
        [row["name"], f"{sum(row['parameters'].values()) / 1e6:.1f} M", with_interval(row["metrics"], "nats"),
         f"{row['metrics']['nats_unigram']:.3f}", f"{row['drawn']['accuracy']:.3f}", f"{row['drawn']['frechet']:.1f}",
         f"{row['seconds']:.0f}"]
        for row in result["records"]
    ]  # fmt: skip
    how = result["protocol"]
    note = (
        f"{result['records'][0]['steps']} steps; nats of {how['n']} held-out pictures, and as many drawn at guidance "
        f"{how['scale']:g}; of the real ones {how['judge']['real']['accuracy']:.3f} are taken for what they are"
    )
    headings = ("backbone", "parameters", "nats (95 %)", "counts alone", "accuracy, drawn", "Frechet, drawn", "seconds")
    return TextTable(headings, rows, note)


TRIED = {"cached": "cache = without", "together": "together = alone", "export": "for transformers", "gguf": "as GGUF"}


def what_works(result: Mapping[str, Any]) -> TextTable:
    """A row a backbone; what any of its runs said instead of yes."""
    rows = []
    for kind in BACKBONES:
        said = [row["works"] for row in result["records"] if row["backbone"] == kind]
        if said:
            rows.append([kind, *(next((s[key] for s in said if s[key] != "yes"), "yes") for key in TRIED)])
    return TextTable(("backbone", *TRIED.values()), rows)


STUDY = Study(run, load, grows=True)
TABLES: Tables = {"backbones": (RESULT, backbones), "backbones-work": (RESULT, what_works)}
