"""Tokens of pictures of any size: a learned resampler, bilinear maps, or pictures resized to one size and back."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from jaxtyping import Float64, UInt8
from torch import Tensor

from channelvq.data.build import build_mixture
from channelvq.data.sizes import SizedMixture
from channelvq.data.stream import Stream, fixed_images
from channelvq.evaluate.metrics import mean_with_interval, psnr, ssim
from channelvq.evaluate.resized import Resized
from channelvq.evaluate.results import make_record, protocol, write_json
from channelvq.evaluate.tables import TextTable
from channelvq.images import normalize, to_uint8
from channelvq.pretrained import tensors_sha256
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.results import read_result
from lab.store import DEFAULT_STORE, trained
from lab.study import Study, Tables

HOURS = 0.5
RESULT = "anysize.json"
RECIPE = "small/any-size"
RUNS = {
    "resampler": (),
    "bilinear maps": ("model.resampler.attention=false",),
    "home size only": ("model.resampler.attention=false", "sizes=null"),
}
# Height and width; of those marked none was trained on.
UNSEEN = ((128, 128), (112, 64))
SIZES = ((64, 64), (48, 80), (96, 96), (64, 128), (128, 64), *UNSEEN)
IMAGES = 256  # of each size
OWN, RESIZED, OFF = "own size", "resized", "own size, attention off"
WAYS = {"resampler": (OWN, RESIZED, OFF), "bilinear maps": (OWN, RESIZED), "home size only": (OWN, RESIZED)}


def recipes() -> dict[str, TokenizerRecipe]:
    """The trainings by name."""
    return {name: load_recipe(RECIPE, more, of=TokenizerRecipe) for name, more in RUNS.items()}


def held_out_at(recipe: TokenizerRecipe, size: tuple[int, int], count: int = IMAGES) -> UInt8[Tensor, "n 3 H W"]:
    """Scenes of the test split: a part of `size` of each square one, always the same."""
    parts = SizedMixture([size], 1, 0, Stream.PARTS.seed(0), lambda side: build_mixture(recipe.data, side, "test", 0))
    return fixed_images(parts, count)


def restored(tokenizer: CVQTokenizer, images: UInt8[Tensor, "n 3 H W"], way: str) -> UInt8[Tensor, "n 3 H W"]:
    """Through all tokens and back, in one of the WAYS.

    "own size" is by the tokenizer's resampler, or by its bilinear part alone; "resized" to the home size before and
    back after, by bicubic interpolation with antialiasing, as one does without a resampler.
    """
    size = (images.shape[2], images.shape[3])
    x, home = normalize(images), (tokenizer.image_size, tokenizer.image_size)
    if way == OFF:
        tokenizer = deepcopy(tokenizer)
        assert tokenizer.resampler is not None
        tokenizer.resampler.gather_residual = tokenizer.resampler.spread_residual = None
    if way != RESIZED or size == home:
        return to_uint8(tokenizer.detokenize(tokenizer.tokenize(x), "tensor", size=size))
    resized = Resized(tokenizer, size)
    return to_uint8(resized.detokenize(resized.tokenize(x)))


def run(path: Path, store: Path = DEFAULT_STORE) -> dict[str, Any]:
    """Train (or take from the store), measure, write and return the result."""
    known = recipes()
    pairs = {name: trained(recipe, store) for name, recipe in known.items()}
    images = {size: held_out_at(known["resampler"], size) for size in SIZES}
    records = []
    for size, originals in images.items():
        values: dict[tuple[str, str], Float64[Tensor, " n"]] = {}
        for name, (tokenizer, done) in pairs.items():
            for way in WAYS[name]:
                there = restored(tokenizer, originals, way)
                values[name, way] = psnr(there, originals)
                metrics = _mean("psnr", values[name, way]) | _mean("ssim", ssim(there, originals))
                facts = {"seed": known[name].train.seed, "steps": known[name].train.steps, **done}
                record = make_record(known[name].model, data="scenes", split="held-out", metrics=metrics, **facts)
                records.append(record | {"name": name, "way": way, "size": list(size), "unseen": size in UNSEEN})
        for record in records[-len(values) :]:
            record["psnr_gain"] = _gain(values["resampler", OWN], values[record["name"], record["way"]])
    how = protocol(
        images[64, 64], data="scenes drawn by channelvq.data.drawn.scenes, test split, at each size", split="test",
        resize="none", crop="a part at random of a square scene of the longer side",
    )  # fmt: skip
    how |= {
        "data_sha256": tensors_sha256({f"{height}x{width}": at for (height, width), at in images.items()}),
        "image_size": [list(size) for size in SIZES],
        "psnr_gain": "of the resampler at the picture's own size over the record, in dB, paired by image",
    }
    write_json(path, {"protocol": how, "records": records})
    return load(path)


def _mean(name: str, values: Tensor) -> dict[str, Any]:
    interval = mean_with_interval(values, seed=0)
    return {name: interval.mean, f"{name}_interval": [interval.low, interval.high]}


def _gain(values: Tensor, others: Tensor) -> dict[str, Any]:
    interval = mean_with_interval(values - others, seed=0)
    return {"mean": interval.mean, "interval": [interval.low, interval.high]}


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    needs = ("records.name", "records.way", "records.size", "records.unseen", "records.psnr_gain.mean",
             "records.psnr_gain.interval", "records.metrics.psnr", "records.metrics.ssim")  # fmt: skip
    return read_result(path, needs, "make it with --rerun (three trainings of some minutes)")


OTHERS = {
    "its attention switched off": ("resampler", OFF), "bilinear maps": ("bilinear maps", OWN),
    "resized": ("resampler", RESIZED), "home size only, bilinear maps": ("home size only", OWN),
    "home size only, resized": ("home size only", RESIZED),
}  # fmt: skip


def quality(result: dict[str, Any]) -> TextTable:
    """PSNR of the resampler at each size, and what it gains over each other way."""
    rows = []
    for size in SIZES:
        ways = {(row["name"], row["way"]): row for row in result["records"] if row["size"] == list(size)}
        unseen = ", not trained at" if size in UNSEEN else ""
        own = ways["resampler", OWN]["metrics"]["psnr"]
        rows.append(
            [f"{size[0]} x {size[1]}{unseen}", f"{own:.2f}", *(_gain_text(ways[way]) for way in OTHERS.values())]
        )
    note = f"PSNR in dB; +: the resampler is ahead of it. {result['protocol']['n']} held-out scenes of each size."
    return TextTable(("height x width", "resampler", *(f"over {name}" for name in OTHERS)), rows, note=note)


def _gain_text(row: dict[str, Any]) -> str:
    low, high = row["psnr_gain"]["interval"]
    return f"{row['psnr_gain']['mean']:+.2f} ({low:+.2f} to {high:+.2f})"


STUDY = Study(run, load)
TABLES: Tables = {"any-size": (RESULT, quality)}
