"""Where the bundled tokenizer fails, on pictures of a closed form, and what helps: of the study `domains`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from channelvq.evaluate.baselines import jpeg, webp
from channelvq.evaluate.tables import TextTable
from channelvq.images import grid, normalize, save_image, to_pil
from channelvq.pictures import restored
from channelvq.tokenizer import CVQTokenizer
from lab.listing import study_module
from lab.plots import line_panels
from lab.probes import Probes, gradients, gratings, measure
from lab.store import run_key, trained

Restore = Callable[[UInt8[Tensor, "n 3 h w"]], UInt8[Tensor, "n 3 h w"]]
CYCLES = (1, 2, 4, 8, 16, 24)
CONTRASTS = (0.125, 0.5, 1.0)
RANGES = (8.0, 16.0, 32.0, 64.0, 128.0, 255.0)
SHOWN_CONTRAST = 0.5
BYTES = 96
# Pairs of runs that differ in one thing, from the studies: name -> (study, run).
STUDIED = {
    "pixel loss, 2,000 steps": ("losses", "pixel"),
    "full recipe, 2,000 steps": ("losses", "full"),
    "4,096 codes, 700 steps": ("scaling", "channel 4,096"),
    "65,536 codes, 700 steps": ("scaling", "channel 65,536"),
    "64 tokens, 700 steps": ("table1", "CVQ, seed 0"),
    "256 tokens, 700 steps": ("table1", "CVQ, 256 tokens, seed 0"),
}


def measure_all(
    bundled: CVQTokenizer, tuned: Mapping[str, CVQTokenizer], known: Sequence[Mapping[str, Any]], store: Path
) -> list[dict[str, Any]]:
    """By method: means over the gratings of each frequency and contrast, and over the gradients of each range.

    known: what an earlier call found. Runs of studies that are in it are not trained for this again.
    """
    methods: dict[str, Restore] = {"JPEG, 96 bytes": lambda x: jpeg(x, BYTES).images,
                                   "WebP, 96 bytes": lambda x: webp(x, BYTES).images}  # fmt: skip
    for k in (16, 32, bundled.num_tokens):
        methods[f"bundled, {k} tokens"] = _by(bundled, k)
    methods |= {f"finetuned on {name}": _by(tokenizer) for name, tokenizer in tuned.items()}
    failures = [{"name": name} | _measured(method, bundled.image_size) for name, method in methods.items()]
    for name, (study, run) in STUDIED.items():
        recipe = study_module(study).STUDY.recipes()[run]
        named = {"name": name, "run": run_key(recipe)}
        stored = next((failure for failure in known if named.items() <= failure.items()), None)
        if stored is None:
            stored = named | _measured(_by(trained(recipe, store)[0]), bundled.image_size)
        failures.append(dict(stored))
    return failures


def _measured(method: Restore, size: int) -> dict[str, Any]:
    waves, slopes = gratings(size, CYCLES, CONTRASTS), gradients(size, RANGES)
    bent = ("psnr", "gain", "false_colour", "reversals")
    return {
        "gratings": _means(waves, method(waves.images), ("psnr", "gain")),
        "gradients": _means(slopes, method(slopes.images), bent),
    }


def _by(tokenizer: CVQTokenizer, num_tokens: int | None = None) -> Restore:
    return lambda images: restored(tokenizer, images, num_tokens)


def _means(probes: Probes, images: UInt8[Tensor, "n 3 h w"], names: Sequence[str]) -> list[dict[str, float]]:
    """The settings in turn, each with the means of what was measured of its pictures."""
    values = measure(probes, images)
    groups: dict[tuple[tuple[str, float], ...], list[int]] = {}
    for number, settings in enumerate(probes.settings):
        groups.setdefault(tuple(settings.items()), []).append(number)
    return [
        dict(group) | {"n": len(numbers)} | {name: float(values[name][numbers].mean()) for name in names}
        for group, numbers in groups.items()
    ]


DRAWN = ("JPEG, 96 bytes", "bundled, 16 tokens", "bundled, 64 tokens", "finetuned on textures",
         "finetuned on photos and waves", "full recipe, 2,000 steps", "256 tokens, 700 steps")  # fmt: skip


def draw(failures: list[dict[str, Any]], bundled: CVQTokenizer, tuned: Mapping[str, CVQTokenizer], path: Path) -> None:
    """RESULT-failures.png, curves over frequency and slope, and RESULT-probes.png, pictures and what is left."""
    drawn = {failure["name"]: failure for failure in failures if failure["name"] in DRAWN}
    panels = [
        ("cycles in 64 px (contrast 0.5)", "contrast left", {
            name: [(row["cycles"], row["gain"]) for row in failure["gratings"] if row["contrast"] == SHOWN_CONTRAST]
            for name, failure in drawn.items()}),
        *(("range of the gradient (grey levels)", label, {
            name: [(row["range"], row[key]) for row in failure["gradients"]] for name, failure in drawn.items()})
          for key, label in (("psnr", "PSNR (dB)"), ("reversals", "share of reversed slopes"))),
    ]  # fmt: skip
    line_panels(panels, path.with_name(f"{path.stem}-failures.png"))
    size = bundled.image_size
    waves, slopes = gratings(size, CYCLES, (SHOWN_CONTRAST,)).images[::4], gradients(size, RANGES[1::2]).images
    images = torch.cat([waves, slopes[0::4], slopes[3::4]])
    rows = [
        images,
        *(restored(tokenizer, images) for tokenizer in (bundled, tuned["textures"], tuned["drawings"])),
    ]
    sheet = grid([picture for row in rows for picture in to_pil(normalize(row))], columns=len(images))
    save_image(sheet, path.with_name(f"{path.stem}-probes.png"))


def gratings_table(result: Mapping[str, Any]) -> TextTable:
    """The contrast left at each frequency, of gratings of the contrast that is drawn."""
    rows = [
        [failure["name"], *(f"{row['gain']:.2f}" for row in failure["gratings"] if row["contrast"] == SHOWN_CONTRAST)]
        for failure in result["failures"]
    ]
    return TextTable(("contrast left", *(f"{f} cycles" for f in CYCLES)), rows)


def gradients_table(result: Mapping[str, Any]) -> TextTable:
    """PSNR, false colour and reversed slopes of the gradients of each range."""
    rows = [
        [failure["name"], *(f"{row['psnr']:.1f} / {row['false_colour']:.1f} / {row['reversals']:.0%}"
                            for row in failure["gradients"])]
        for failure in result["failures"]
    ]  # fmt: skip
    return TextTable(("PSNR / false colour / reversed", *(f"{r:.0f} levels" for r in RANGES)), rows)
