"""Small studies: a handful of recipes (study_list.py) trained alike and measured on the same held-out images."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from rich.table import Table
from torch import Tensor

from channelvq.evaluate.held_out import DESCRIPTIONS, held_out
from channelvq.evaluate.measures import Measures, choose_measures
from channelvq.evaluate.plots import check_plot, curves_over_codes, line_panels
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.results import protocol, read_result, write_json
from channelvq.images import grid, normalize, save_image, to_pil
from channelvq.pictures import restored
from channelvq.terminal import terminal_table
from channelvq.train.engine import read_metrics
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.store import DEFAULT_STORE, kept_records, record, run_key, trained
from lab.studies import table1
from lab.study_list import STUDIES


def recipes(study: str) -> dict[str, TokenizerRecipe]:
    """The resolved recipes of a study by name."""
    return {
        name: load_recipe(base, overrides, of=TokenizerRecipe)
        for name, (base, overrides) in STUDIES[study].runs.items()
    }


def run(study: str, path: Path, store: Path = DEFAULT_STORE, missing: bool = False) -> dict[str, Any]:
    """Train the recipes (or take them from the store), measure on held-out images, write and return the result.

    missing: only what the result at `path` lacks; records of recipes as they are now stay, and each new one is written
    at once. Raises InputError where those were measured in another way.
    """
    about = STUDIES[study]
    if study in PLOTS:
        check_plot()
    images = torch.cat([held_out(kind, about.images) for kind in about.kinds])
    measures = choose_measures(images.shape[-1], "bundled" if about.features else "none")
    data = "; ".join(f"{about.images} {kind}: {DESCRIPTIONS[kind]}" for kind in about.kinds)
    how = protocol(images, data=data, split="test", resize="antialiased", crop="see data")
    how |= measures.protocol(len(images))
    found = _kept(study, path, how) if missing else {}
    for name, recipe in recipes(study).items():
        if name not in found:
            found[name] = _measured(study, name, recipe, images, measures, store)
            if missing:
                _write(study, path, how, found)
    if not missing:
        _write(study, path, how, found)
    result = load(path)
    if study in PLOTS:
        PLOTS[study](result, path.with_suffix(".png"))
    if about.shown:
        draw_restored(study, images, path.with_suffix(".png"), store)
    return result


def _kept(study: str, path: Path, how: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By name, the stored records of recipes as they are now."""
    if not path.exists():
        return {}
    keys = {name: run_key(recipe) for name, recipe in recipes(study).items()}
    return kept_records(load(path), path, how, keys)


def _write(study: str, path: Path, how: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    write_json(path, {"protocol": how, "records": [found[name] for name in STUDIES[study].runs if name in found]})


def _measured(
    study: str, name: str, recipe: TokenizerRecipe, images: UInt8[Tensor, "n 3 h w"], measures: Measures, store: Path
) -> dict[str, Any]:
    """One record."""
    about = STUDIES[study]
    tokenizer, done = trained(recipe, store)
    prefixes = None if about.every_prefix else [tokenizer.num_tokens]
    report = evaluate_reconstruction(tokenizer, images, prefixes=prefixes, measures=measures)
    base, overrides = about.runs[name]
    facts = {"name": name, "recipe": base, "overrides": list(overrides), "validation": _validation(store, done)}
    facts |= {"game": game} if (game := _game(store, done)) else {}
    if about.per_image:
        facts["per_image"] = {metric: report.per_image()[metric] for metric in about.per_image}
    return facts | record(recipe, done, "+".join(about.kinds), report.to_dict())


def _game(store: Path, done: dict[str, Any]) -> dict[str, float]:
    """How steady the discriminator was in the second half of training; empty where there was none."""
    lines = [line for line in read_metrics(store / done["run"]) if "discriminator" in line]
    late = [line for line in lines if 2 * line["step"] > lines[-1]["step"]]
    if not late:
        return {}
    loss = torch.tensor([line["discriminator"] for line in late], dtype=torch.float64)
    norm = torch.tensor([line["discriminator_gradient_norm"] for line in late], dtype=torch.float64)
    return {"discriminator_mean": float(loss.mean()), "discriminator_deviation": float(loss.std()),
            "gradient_norm_mean": float(norm.mean()), "gradient_norm_max": float(norm.max())}  # fmt: skip


def draw_restored(study: str, images: UInt8[Tensor, "n 3 h w"], path: Path, store: Path = DEFAULT_STORE) -> None:
    """The first images of each kind, and below them what every run makes of them."""
    about = STUDIES[study]
    some = torch.cat([images[i * about.images :][: about.shown] for i in range(len(about.kinds))])
    rows, captions = [to_pil(normalize(some))], ["original"]
    for name, recipe in recipes(study).items():
        tokenizer, _ = trained(recipe, store)
        rows.append(to_pil(normalize(restored(tokenizer, some))))
        captions.append(name)
    empty = [""] * (len(some) - 1)
    texts = [text for caption in captions for text in (caption, *empty)]
    save_image(grid([image for row in rows for image in row], len(some), captions=texts, scale=2), path)


def _validation(store: Path, done: dict[str, Any]) -> dict[str, float]:
    """The last figures on validation images, which choices may be made by."""
    lines = [line for line in read_metrics(store / done["run"]) if line["kind"] == "evaluate"]
    return {key: value for key, value in lines[-1].items() if isinstance(value, float)}


def draw_scaling(result: dict[str, Any], path: Path) -> None:
    """Use, evenness and PSNR over the codebook size, a line for each axis and quantizer."""
    labels = {"use": "use of the codebook", "perplexity_ratio": "perplexity / N", "psnr": "PSNR (dB)"}
    names = dict.fromkeys((row["axis"], row["quantizer"]) for row in result["records"])
    panels = {
        label: {
            f"{axis}, {kind}": [
                (row["codes"], row["metrics"][metric])
                for row in result["records"]
                if (row["axis"], row["quantizer"]) == (axis, kind)
            ]
            for axis, kind in names
        }
        for metric, label in labels.items()
    }
    curves_over_codes(panels, path)


def draw_prefixes(result: dict[str, Any], path: Path) -> None:
    """PSNR of every prefix, a line for each run."""
    lines = {
        row["name"]: [(prefix["tokens"], prefix["psnr"]) for prefix in row["metrics"]["prefixes"]]
        for row in result["records"]
    }
    line_panels([("tokens", "PSNR (dB)", lines)], path)


PLOTS = {"scaling": draw_scaling, "nested": draw_prefixes, "nested-scenes": draw_prefixes, "table1": table1.draw}


MEASURED = ("psnr", "ssim", "use", "use_if_uniform", "perplexity", "perplexity_ratio")
NEEDS = (
    "protocol.n", "records.name", "records.run", "records.steps", "records.seconds",
    *(f"records.metrics.{name}" for name in MEASURED),
)  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    return read_result(path, NEEDS, "make it with --rerun, or run by run with --missing")


def table(result: dict[str, Any]) -> Table:
    """For a terminal."""
    headings = ("run", "steps", "use", "if uniform", "perplexity", "perplexity/N", "PSNR", "SSIM", "seconds")
    rows = [
        [
            row["name"], str(row["steps"]), f"{m['use']:.1%}", f"{m['use_if_uniform']:.1%}", f"{m['perplexity']:.0f}",
            f"{m['perplexity_ratio']:.2f}", f"{m['psnr']:.2f}", f"{m['ssim']:.3f}", f"{row['seconds']:.0f}",
        ]
        for row in result["records"]
        for m in [row["metrics"]]
    ]  # fmt: skip
    title = f"{result['protocol']['n']} held-out images"
    return terminal_table(headings, rows, title, "same network, data, start, steps and tokens")
