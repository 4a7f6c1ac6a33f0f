"""The tokenizer that ships in the package: from a finished run to weights, model card and results."""

import json
import os
import platform
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from channelvq.byte_rows import SCALE, with_byte_rows
from channelvq.config import to_dict
from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.drawn.scenes import SceneConfig
from channelvq.data.drawn.waves import WaveConfig
from channelvq.data.fetched.catalogue import PACKAGES, Work
from channelvq.data.fetched.emoji import EmojiConfig
from channelvq.data.fetched.fashion import FashionConfig
from channelvq.data.fetched.photo_list import PHOTOS
from channelvq.data.fetched.photos import PhotoConfig
from channelvq.data.stream import Mixture, fixed_images
from channelvq.errors import InputError
from channelvq.evaluate.baselines import PROTOCOL, PCABaseline, baseline_curves
from channelvq.evaluate.held_out import KINDS, held_out, held_out_protocol
from channelvq.evaluate.metrics import METRICS, with_interval
from channelvq.evaluate.plots import check_plot, quality_against_bytes
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.results import git_revision, make_record, write_json, write_text
from channelvq.evaluate.tables import TextTable
from channelvq.files import replaced_folder
from channelvq.pretrained import read_metadata, read_weights, write_weights
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.checkpoint import checkpoints, read_state
from channelvq.train.engine import training_seconds
from channelvq.train.run import R, load_recipe
from channelvq.train.task import Recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.store import run_key
from lab.study import Tables, prefix_table

RECIPE = "small/bundled"
IMAGES = 768  # 49,152 tokens, 12 for each code
PCA_IMAGES, PCA_COMPONENTS = 6000, 256
LARGE = 2**16  # numbers of a matrix that is stored as bytes
FINAL = ("model.safetensors", "config.json")


def bundle(run_dir: Path, package: Path, results: Path, command: str) -> dict[str, Any]:
    """Half-precision weights and model card into `package`/tokenizer, PCA beside it, figures into `results`.

    Everything is measured on the weights as they are stored, not as they were trained. The package keeps what it had
    until all of it is there. Raises InputError for a run that is not finished, or trained on what may not be bundled.
    """
    recipe, facts = finished_run(run_dir, TokenizerRecipe, command)
    works_of(recipe.data)
    check_plot()
    with replaced_folder(package / "tokenizer") as folder:
        copy_stored(run_dir / "final", folder, shrink)
        tokenizer = CVQTokenizer.from_pretrained(folder)
        fitted = PCABaseline.fit(fixed_images(_train_mixture(recipe), PCA_IMAGES), num_components=PCA_COMPONENTS)
        fitted.save(folder / "pca.safetensors")
        pca = PCABaseline.load(folder / "pca.safetensors")
        records = [measure(tokenizer, pca, kind, results, trained_by(recipe, facts)) for kind in KINDS]
        result = {"run": facts, "protocol": {"baselines": PROTOCOL}, "records": records}
        card = partial(model_card, recipe=recipe)
        stored = write_with_card(results / "bundled-tokenizer.json", result, folder, card)
        (folder / "pca.safetensors").replace(package / "pca.safetensors")
    return stored


def _train_mixture(recipe: TokenizerRecipe) -> Mixture:
    return build_mixture(recipe.data, recipe.model.image_size, "train", seed=1)


def write_with_card(
    path: Path, result: dict[str, Any], folder: Path, card: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """Write a result file, and README.md of what was measured by the figures as they are stored; returns these."""
    write_json(path, result)
    stored = json.loads(path.read_text())
    write_text(folder / "README.md", card(stored))
    return stored


def copy_stored(source: Path, folder: Path, store: Callable[[Path], None]) -> None:
    """Put the config and the weights of a trained model into a folder, these as `store` rewrites their file."""
    for name in FINAL:
        shutil.copy(source / name, folder / name)
    store(folder / "model.safetensors")


def halve(path: Path, keep: Collection[str] = ()) -> None:
    """Store the floating-point weights of a file in half precision, but for the ones to keep."""
    write_weights(path, _halved(read_weights(path), keep), read_metadata(path))


def shrink(path: Path, keep: Collection[str] = (), large: int = LARGE) -> None:
    """As `halve`, but a byte a number for matrices of at least so many numbers."""
    state = read_weights(path)
    names = {
        n for n, t in state.items() if t.is_floating_point() and t.ndim > 1 and t.numel() >= large and n not in keep
    }
    small = _halved(with_byte_rows(state, names), keep={*keep, *(name + SCALE for name in names)})
    write_weights(path, small, read_metadata(path))


def _halved(state: Mapping[str, Tensor], keep: Collection[str]) -> dict[str, Tensor]:
    return {name: t.half() if t.is_floating_point() and name not in keep else t for name, t in state.items()}


def measure(
    tokenizer: CVQTokenizer, pca: PCABaseline, kind: str, results: Path, training: dict[str, Any], count: int = IMAGES
) -> dict[str, Any]:
    """The record of one kind of held-out images, with its own protocol; a plot into `results`.

    training: as of `trained_by`. The protocol has its revision, not that of a checkout whose package was rewritten.
    """
    images: Tensor = held_out(kind, count)
    report = evaluate_reconstruction(tokenizer, images)
    budgets = [prefix.num_bytes for prefix in report.prefixes if prefix.num_bytes >= 6]
    curves = baseline_curves(images[:256], budgets, pca)
    quality_against_bytes(report, curves, results / f"bundled-tokenizer-{kind}.png")
    how = held_out_protocol(kind, images, tokenizer) | {"git": training["git"]}
    baselines = {name: [point.to_dict() for point in curve] for name, curve in curves.items()}
    entry = make_record(tokenizer.config, data=kind, split="held-out", metrics=report.to_dict(), **training)
    return entry | {"protocol": how, "baselines": {"images": "the first 256", "curves": baselines}}


def trained_by(recipe: Recipe, facts: dict[str, Any]) -> dict[str, Any]:
    """What a record says of its training; facts: of `finished_run`."""
    settings = {"seed": recipe.train.seed, "steps": recipe.train.steps, "run": run_key(recipe)}
    return settings | {"seconds": facts["training_seconds"], "git": facts["git"]}


def finished_run(run_dir: Path, of: type[R], command: str) -> tuple[R, dict[str, Any]]:
    """The recipe of a run, and how it was made; asked before the package is written to, which changes the checkout.

    of: the kind of its recipe. Raises InputError, which says how to go on, for a run that is not there or not finished.
    """
    config = run_dir / "config.yaml"
    if not config.is_file():
        raise InputError(f"{run_dir}: there is no run, it has no config.yaml; train one with `{command}`")
    recipe = load_recipe(config, of=of)
    stored = checkpoints(run_dir)
    lacking = [name for name in FINAL if not (run_dir / "final" / name).is_file()]
    if not stored and not lacking:
        raise InputError(f"{run_dir}: there is no checkpoint, which tells how it was trained; put the newest one back")
    state = read_state(stored[-1]) if stored else {"step": 0}
    if lacking or state["step"] < recipe.train.steps:
        what = f"{state['step']} of {recipe.train.steps} steps are done" + (
            f", final/ has no {lacking[0]}" if lacking else ""
        )
        raise InputError(
            f"{run_dir}: the run is not finished ({what}); go on with `cvq train {config} train.resume=true`"
        )
    return recipe, _run_facts(run_dir, recipe, command, state.get("threads", "an unknown number"))


def _run_facts(run_dir: Path, recipe: Recipe, command: str, threads: int | str) -> dict[str, Any]:
    return {
        "command": command,
        "steps": recipe.train.steps,
        "training_seconds": training_seconds(run_dir, recipe.train.batch_size),
        "machine": f"{threads} of {os.cpu_count()} CPU cores ({platform.machine()})",
        "torch": torch.__version__,
        "git": git_revision(),
        "recipe": to_dict(recipe),
    }


def model_card(result: dict[str, Any], recipe: TokenizerRecipe) -> str:
    """README.md of the bundled tokenizer, every figure from the result file."""
    run = result["run"]
    rows = []
    for record in result["records"]:
        m = record["metrics"]
        pca = next((p for p in record["baselines"]["curves"]["pca"] if p["budget"] == m["bytes"]), None)
        cells = [record["data"], f"{m['psnr']:.2f}", f"{m['ssim']:.3f}", f"{pca['psnr']:.2f}" if pca else "-"]
        cells += [f"{m['use']:.1%}", f"{m['use_if_uniform']:.1%}", f"{m['perplexity']:.0f}", f"{m['usage_tokens']}"]
        rows.append("| " + " | ".join(cells) + " |")
    return CARD.format(
        tokens=recipe.model.num_tokens, codes=recipe.model.quantizer.codebook_size, side=recipe.model.latent_size,
        size=recipe.model.image_size, bytes=result["records"][0]["metrics"]["bytes"], command=run["command"],
        steps=run["steps"], batch=recipe.train.batch_size, minutes=run["training_seconds"] / 60,
        machine=run["machine"], torch=run["torch"],
        git=run["git"], rows="\n".join(rows), works=credits_of(works_of(recipe.data)),
    )  # fmt: skip


def quality(result: dict[str, Any]) -> TextTable:
    """The bundled tokenizer at full length on each kind of image, with the baselines at the same bytes."""
    rows = []
    for record in result["records"]:
        m = record["metrics"]
        baselines = [_at(record, name, m["bytes"]) for name in ("pca", "jpeg", "webp")]
        use = [f"{m['use']:.1%}", f"{m['perplexity_ratio']:.2f}", str(m["usage_tokens"])]
        rows.append([record["data"], with_interval(m, "psnr"), f"{m['ssim']:.3f}", *baselines, *use])
    headings = ("images", "PSNR (95 %)", "SSIM", "PCA", "JPEG", "WebP", "use", "perplexity/N", "tokens measured")
    return TextTable(headings, rows)


def _at(record: dict[str, Any], baseline: str, budget: int) -> str:
    points = record["baselines"]["curves"][baseline]
    return next((f"{point['psnr']:.2f}" for point in points if point["budget"] == budget), "-")


def prefixes(result: dict[str, Any]) -> TextTable:
    """PSNR at every prefix length."""
    return prefix_table(result["records"], name="data")


def evaluation(result: dict[str, Any]) -> TextTable:
    """Every prefix of one `cvq evaluate reconstruction`, and how long it took."""
    record = result["records"][0]
    names = [name for name in METRICS.names() if name in record["metrics"]]
    rows = [
        [str(p["tokens"]), str(p["bytes"]), *(with_interval(p, name) for name in names), f"{p['use']:.1%}"]
        for p in record["metrics"]["prefixes"]
    ]
    note = (
        f"{result['protocol']['n']:,} images at all prefixes in {record['evaluation_seconds']:.0f} seconds on "
        f"{record['machine']}, {record['images_per_second']:.0f} images a second."
    )
    return TextTable(["tokens", "bytes", *(METRICS[name].heading for name in names), "use"], rows, note=note)


TABLES: Tables = {
    "bundled": ("bundled-tokenizer.json", quality), "prefixes": ("bundled-tokenizer.json", prefixes),
    "evaluation": ("evaluate-bench.json", evaluation),
}  # fmt: skip


def works_of(data: DataConfig) -> list[Work]:
    """What a recipe trains on, with licences; of the photographs only those of the train split.

    Raises InputError for a source whose licences are not known.
    """
    names, works = set[str](), list[Work]()
    for name, source in data.sources.items():
        if source.weight == 0:  # nothing of it was read
            continue
        match source:
            case EmojiConfig():
                names |= {"fluent-emoji" if source.style == "fluent" else source.style, "emojibase-data"}
            case SceneConfig(sprites="fluent"):
                names |= {"fluent-emoji", "emojibase-data"}
            case PhotoConfig():
                works += [Work(p.name, p.licence, p.attribution) for p in PHOTOS if p.split == "train"]
            case FashionConfig():
                names.add("fashion-mnist")
            case SceneConfig() | WaveConfig():
                pass  # drawn by our code alone
            case _:
                raise InputError(
                    f"data.sources.{name}: the licences of a source of kind {source.kind!r} are not known here, so "
                    "what was trained on it cannot be bundled; use emoji, photos, fashion-mnist, scenes and waves"
                )
    return [work for name in sorted(names) for work in PACKAGES[name].works] + works


def credits_of(works: Iterable[Work]) -> str:
    """A line of Markdown for each work."""
    return "\n".join(f"- {work.name}: {work.licence}, {work.attribution}" for work in works)


CARD = """---
library_name: channelvq
license: apache-2.0
tags: [image-tokenizer, vector-quantization]
---
# The bundled CVQ tokenizer

{size} x {size} px images <-> {tokens} channel tokens of {codes} codes ({side} x {side} codewords), {bytes} bytes an
image. Trained with nested channel dropout: any prefix of the tokens decodes. Large matrices are stored a byte a
number, the rest in half precision.

```python
from channelvq import CVQTokenizer

tok = CVQTokenizer.from_pretrained("bundled")
```

## Training

`{command}`: {steps} steps of {batch} images, {minutes:.0f} minutes on {machine}, torch {torch}, revision `{git}`.

## Held-out results

At full length, on labels and photographs that were never trained on; scenes are drawn by our code. PCA has the same
bytes. Every figure is in `results/bundled-tokenizer.json`.

| images | PSNR (dB) | SSIM | PCA, PSNR | use | if uniform | perplexity | tokens measured |
|---|---|---|---|---|---|---|---|
{rows}

## Limits

A small tokenizer for learning, tests and demonstrations: {size} px, few kinds of images, pixel loss only, so fine
texture and text come out smooth.

## Sources of the training images, with licences

- Scenes drawn by channelvq (Apache-2.0).
{works}
"""
