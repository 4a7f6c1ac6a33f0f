"""Small studies: a handful of recipes trained alike and measured on the same held-out images.

axis: does a token for each channel beat a token for each patch? Same network, data, start, steps and number of tokens;
nested dropout off for both, as it has no meaning along the patch axis. Paper, the comparison behind its table 1: at
h*w = c both cost the same tokens, lookups and memory.
codebook: what keeps the plain codebook alive? Short runs with one setting changed at a time from `base`, on both axes.
ibq: which logits keep index backpropagation alive at a code dimension of 256? Short runs on one core.
scaling: what becomes of use and quality from 1,024 to 65,536 codes? Both axes, and three of the family at 16,384.
Paper: the codebook-size study (65,536 codes: 100 % use against 1.1 %).
losses: what do the perceptual and the adversarial loss change?
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from rich.table import Table
from torch import Tensor

from channelvq.errors import InputError
from channelvq.evaluate.features import kernel_distance, perceptual_distances
from channelvq.evaluate.metrics import mean_with_interval
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.report import protocol, write_json
from channelvq.experiments.held_out import DESCRIPTIONS, held_out
from channelvq.experiments.store import DEFAULT_STORE, record, trained
from channelvq.images import normalize, to_uint8
from channelvq.nn.perceptual import PerceptualNetwork
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.run import load_tokenizer_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe

IMAGES = 768  # of each kind: 2 * 768 * 64 = 98,304 tokens, 24 for each code
MORE_IMAGES = {"scaling": 4096}  # 524,288 tokens, 8 for each of 65,536 codes
KINDS = ("emoji", "photos")

_LONG = ("train.steps=4000", "train.evaluate_every=2000")
_SHORT = ("train.steps=150", "train.checkpoint_every=150", "train.evaluate_every=150")
_WIDE = (
    "model.network.base_channels=32", "model.network.multipliers=[1]", "model.network.num_blocks=1",  # D = 16 * 16
    "model.quantizer.codebook_size=1024", "train.batch_size=16", "train.precision=no", "train.threads=1",
    "train.warmup_steps=20", "train.steps=100", "train.checkpoint_every=100", "train.evaluate_every=100",
)  # fmt: skip
_IBQ = {
    "distance, tau set, straight (default)": (),
    "distance, tau set": ("path=index",),
    "distance, tau = 1": ("path=index", "temperature=1"),
    "dot, tau = 1 (the paper's)": ("path=index", "logits=dot", "temperature=1"),
    "dot, tau set": ("path=index", "logits=dot"),
    "cosine, tau = 1": ("path=index", "logits=cosine", "temperature=1"),
    "cosine, tau set": ("path=index", "logits=cosine"),
    "uniform start: distance, tau set, straight": ("start=uniform",),
    "uniform start: distance, tau set": ("start=uniform", "path=index"),
    "uniform start: dot, tau = 1": ("start=uniform", "path=index", "logits=dot", "temperature=1"),
}
_SCALING = (
    "train.steps=700", "train.evaluate_every=700", "train.checkpoint_every=350",
    "objective.start_images=2048", "model.quantizer.kmeans_iterations=5",  # 131,072 tokens to start 65,536 codes from
)  # fmt: skip
_SIZES = (1024, 4096, 16384, 65536)
STUDIES: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "axis": {
        f"{axis}, seed {seed}": (f"small/axis-{axis}", (*_LONG, f"train.seed={seed}"))
        for seed in range(3)
        for axis in ("channel", "patch")
    },
    "codebook": {
        name: (f"small/axis-{'patch' if name.startswith('patch') else 'channel'}", (*_SHORT, *overrides))
        for name, overrides in {
            "base": (),
            "learning rate x 4": ("train.learning_rate=2e-3",),
            "learning rate / 4": ("train.learning_rate=1.25e-4",),
            "Adam(0.5, 0.9)": ("train.betas=[0.5,0.9]",),
            "beta 0.02": ("model.quantizer.beta=0.02",),
            "beta 1": ("model.quantizer.beta=1.0",),
            "pixel loss x 10": ("objective.pixel_weight=10",),
            "50 steps without codebook": ("objective.start_step=50",),
            "uniform start": ("model.quantizer.start=uniform",),
            "patch": (),
            "patch, learning rate x 4": ("train.learning_rate=2e-3",),
            "patch, learning rate / 4": ("train.learning_rate=1.25e-4",),
        }.items()
    },
    "scaling": {
        " ".join(filter(None, (axis, kind, f"{codes:,}"))): (
            f"small/axis-{axis}",
            (*_SCALING, f"model.quantizer.kind={kind or 'plain'}", f"model.quantizer.codebook_size={codes}"),
        )
        for axis, kind, codes in (
            *((axis, "", codes) for codes in _SIZES for axis in ("channel", "patch")),
            ("channel", "simvq", 16384),
            ("channel", "ibq", 16384),
            ("patch", "simvq", 16384),
        )
    },
    "losses": {
        "pixel": ("small/bundled", ("train.steps=2000",)),
        "full": ("small/full", ()),
    },
    "ibq": {
        "plain": ("small/axis-channel", _WIDE),
        "uniform start: plain": ("small/axis-channel", (*_WIDE, "model.quantizer.start=uniform")),
        **{
            name: (
                "small/axis-channel",
                (*_WIDE, "model.quantizer.kind=ibq", *(f"model.quantizer.{each}" for each in settings)),
            )
            for name, settings in _IBQ.items()
        },
    },
}


def recipes(study: str) -> dict[str, TokenizerRecipe]:
    """The resolved recipes of a study by name."""
    return {name: load_tokenizer_recipe(base, overrides) for name, (base, overrides) in STUDIES[study].items()}


def run(study: str, path: Path, store: Path = DEFAULT_STORE) -> dict[str, Any]:
    """Train the recipes (or take them from the store), measure on held-out images, write and return the result."""
    count = MORE_IMAGES.get(study, IMAGES)
    images = torch.cat([held_out(kind, count) for kind in KINDS])
    records = []
    for name, recipe in recipes(study).items():
        tokenizer, done = trained(recipe, store)
        metrics = evaluate_reconstruction(tokenizer, images, prefixes=[tokenizer.num_tokens]).to_dict()
        if study == "losses":
            metrics |= _features(tokenizer, images)
        base, overrides = STUDIES[study][name]
        facts = {"name": name, "recipe": base, "overrides": list(overrides)}
        records.append(facts | record(recipe, done, "+".join(KINDS), metrics))
    data = "; ".join(f"{count} {kind}: {DESCRIPTIONS[kind]}" for kind in KINDS)
    how = protocol(images, data=data, split="test", resize="antialiased", crop="see data")
    write_json(path, {"protocol": how, "records": records})
    return load(path)


def _features(tokenizer: CVQTokenizer, images: UInt8[Tensor, "n 3 h w"]) -> dict[str, float]:
    """Distances by the bundled perceptual network, the one that the full recipe trains with."""
    network = PerceptualNetwork.load("bundled")
    parts = [tokenizer.detokenize(tokenizer.tokenize(normalize(part)), "tensor") for part in images.split(256)]
    restored = to_uint8(torch.cat(parts))
    distance = mean_with_interval(perceptual_distances(network, restored, images), seed=0)
    return {
        "perceptual": distance.mean,
        "perceptual_low": distance.low,
        "perceptual_high": distance.high,
        "kid_ours": kernel_distance(network, restored, images),
    }


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    if not path.is_file():
        raise InputError(f"{path}: there is no stored result; make it with --rerun (3 to 10 minutes a run on 2 cores)")
    return json.loads(path.read_text())


def table(result: dict[str, Any]) -> Table:
    """For a terminal."""
    shown = Table(
        title=f"{result['protocol']['n']} held-out images", caption="same network, data, start, steps and tokens"
    )
    for heading in ("run", "steps", "use", "if uniform", "perplexity", "perplexity/N", "PSNR", "SSIM", "seconds"):
        shown.add_column(heading, justify="right")
    for row in result["records"]:
        m = row["metrics"]
        shown.add_row(
            row["name"], str(row["steps"]), f"{m['use']:.1%}", f"{m['use_if_uniform']:.1%}", f"{m['perplexity']:.0f}",
            f"{m['perplexity_ratio']:.2f}", f"{m['psnr']:.2f}", f"{m['ssim']:.3f}", f"{row['seconds']:.0f}",
        )  # fmt: skip
    return shown
