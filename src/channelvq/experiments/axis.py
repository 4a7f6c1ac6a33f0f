"""Does a token for each channel beat a token for each patch? Same network, data, start, steps and number of tokens.

Paper, the comparison behind its table 1: at h*w = c both cost the same tokens, lookups and memory. Here 64 px, f = 8,
64 channels of 8 x 8, 4,096 codes; nested dropout off for both, as it has no meaning along the patch axis.
"""

import json
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from channelvq.errors import InputError
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.report import protocol, write_json
from channelvq.experiments.held_out import DESCRIPTIONS, held_out
from channelvq.experiments.store import DEFAULT_STORE, record, trained
from channelvq.train.run import load_recipe

RECIPES = {"channel": "small/axis-channel", "patch": "small/axis-patch"}
IMAGES = 768  # of each kind: 2 * 768 * 64 = 98,304 tokens, 24 for each code


def run(path: Path, store: Path = DEFAULT_STORE) -> dict[str, Any]:
    """Train both recipes (or take them from the store), measure on held-out images, write and return the result."""
    images = torch.cat([held_out(kind, IMAGES) for kind in ("emoji", "photos")])
    records = []
    for name in RECIPES.values():
        recipe = load_recipe(name)
        tokenizer, done = trained(recipe, store)
        last = tokenizer.num_tokens
        report = evaluate_reconstruction(tokenizer, images, prefixes=[last])
        records.append(record(recipe, done, "emoji+photos", report.to_dict()) | {"recipe": name})
    data = "; ".join(f"{IMAGES} {kind}: {DESCRIPTIONS[kind]}" for kind in ("emoji", "photos"))
    how = protocol(images, data=data, split="test", resize="antialiased", crop="see data")
    write_json(path, {"protocol": how, "records": records})
    return load(path)


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    if not path.is_file():
        raise InputError(f"{path}: there is no stored result; make it with --rerun (about 15 minutes on 2 cores)")
    return json.loads(path.read_text())


def table(result: dict[str, Any]) -> Table:
    """For a terminal."""
    shown = Table(
        title=f"Held-out images: {result['protocol']['n']}", caption="same network, data, start, steps, tokens"
    )
    headings = (
        "axis",
        "tokens",
        "codes",
        "steps",
        "use",
        "if uniform",
        "perplexity",
        "perplexity/N",
        "PSNR",
        "SSIM",
        "s",
    )
    for heading in headings:
        shown.add_column(heading, justify="right")
    for row in result["records"]:
        m = row["metrics"]
        shown.add_row(
            row["axis"], str(row["tokens"]), str(row["codes"]), str(row["steps"]), f"{m['use']:.1%}",
            f"{m['use_if_uniform']:.1%}", f"{m['perplexity']:.0f}", f"{m['perplexity_ratio']:.2f}",
            f"{m['psnr']:.2f}", f"{m['ssim']:.3f}", f"{row['seconds']:.0f}",
        )  # fmt: skip
    return shown
