"""The bundled tokenizer on other kinds of pictures, untouched and finetuned; where it fails, and what helps."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from channelvq.data.fetched.crops import CropSource
from channelvq.data.fetched.domains import DomainSource
from channelvq.data.fetched.photos import PhotoConfig
from channelvq.data.stream import Mixture, fixed_images
from channelvq.evaluate.held_out import held_out, held_out_protocol
from channelvq.evaluate.measures import Measures, choose_measures
from channelvq.evaluate.metrics import mean_with_interval, with_interval
from channelvq.evaluate.plots import check_plot
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.results import make_record, write_json
from channelvq.evaluate.tables import TextTable
from channelvq.images import grid, normalize, save_image, to_pil
from channelvq.pictures import restored
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab import failures
from lab.results import read_result
from lab.store import DEFAULT_STORE, trained
from lab.study import Study, Tables

HOURS = 0.3
RESULT = "domains.json"
FINETUNED = {
    "photos": ("data.sources.domain.weight=0", "data.sources.photos.kind=photos"),
    **{name: (f"data.sources.domain.name={name}",) for name in ("drawings", "textures", "astronomy")},
    # For the failure cases: half of the images are coloured gradients and gratings.
    "photos and waves": ("data.sources.domain.weight=0", "data.sources.photos.kind=photos",
                         "data.sources.waves.kind=waves"),
}  # fmt: skip
MEASURED_ON = {name: name.removesuffix(" and waves") for name in FINETUNED}  # beside emoji
IMAGES = 768  # 49,152 tokens, 12 for each code
SINGLE = {"histology": 512, "retina": 512}  # crops of the one picture; 8 tokens for each code
UNTOUCHED = "untouched"
NUM_SHOWN = 12
# Pictures that may be shown here: of textures those under CC0, of astronomy those by NASA and ESA.
CC0_TEXTURES = ("brick", "grass", "gravel")
HUBBLE = ("ic4406.png", "n2261.png", "n2808.png", "n3314.png", "n6240.png", "n6503.png")


def recipes() -> dict[str, TokenizerRecipe]:
    """How the bundled tokenizer is finetuned, by the kind of pictures."""
    return {name: load_recipe("small/domain", settings, of=TokenizerRecipe) for name, settings in FINETUNED.items()}


def run(path: Path, store: Path = DEFAULT_STORE) -> dict[str, Any]:
    """Finetune (or take from the store), measure, draw, write and return the result."""
    check_plot()
    bundled = CVQTokenizer.from_pretrained("bundled")
    measures = choose_measures(bundled.image_size, "bundled")
    pairs = {name: (recipe, *trained(recipe, store)) for name, recipe in recipes().items()}
    records = []
    for kind in ("emoji", *dict.fromkeys(MEASURED_ON.values()), *SINGLE):
        images = held_out(kind, SINGLE.get(kind, IMAGES))
        before, psnr = measured(kind, UNTOUCHED, bundled, images, measures, {}, store)
        records.append(before)
        for name, (recipe, tokenizer, done) in pairs.items():
            if kind in (MEASURED_ON[name], "emoji"):
                facts = {"seed": recipe.train.seed, "steps": recipe.train.steps, **done}
                after, tuned_psnr = measured(kind, name, tokenizer, images, measures, facts, store)
                records.append(after | {"psnr_gain": gain(psnr, tuned_psnr)})
    tuned = {name: tokenizer for name, (_, tokenizer, _) in pairs.items()}
    known = load(path)["failures"] if path.is_file() else []
    failed = failures.measure_all(bundled, tuned, known, store)
    how = {"finetuned": "small/domain: 200 steps of 32 from the bundled weights", **measures.protocol(IMAGES)}
    write_json(path, {"protocol": how, "records": records, "failures": failed})
    for kind in dict.fromkeys((*MEASURED_ON.values(), "medical")):
        draw(kind, bundled, tuned.get(kind), path.with_name(f"{path.stem}-{kind}.png"))
    failures.draw(failed, bundled, tuned, path)
    return load(path)


def measured(
    kind: str, state: str, tokenizer: CVQTokenizer, images: UInt8[Tensor, "n 3 h w"], measures: Measures,
    training: dict[str, Any], store: Path,
) -> tuple[dict[str, Any], list[float]]:  # fmt: skip
    """The record of one tokenizer on one kind of pictures and each one's PSNR, measured now or read from the store.

    state: "untouched", or what the tokenizer was finetuned on. training: what `make_record` says of it. In the store it
    goes by all that decides it: weights, images, definitions, networks.
    """
    how = held_out_protocol(kind, images, tokenizer)
    deciding = {key: value for key, value in how.items() if key != "git"} | measures.protocol(len(images))
    key = hashlib.sha256(json.dumps([kind, state, training, deciding], sort_keys=True).encode()).hexdigest()[:16]
    path = store / f"domains-{key}.json"
    if not path.is_file():
        report = evaluate_reconstruction(tokenizer, images, prefixes=[tokenizer.num_tokens], measures=measures)
        entry = make_record(tokenizer.config, data=kind, split="held-out", metrics=report.to_dict(), **training)
        values = report.prefixes[-1].per_image["psnr"]
        write_json(path, {"record": entry | {"state": state, "protocol": how}, "psnr": values})
    stored = json.loads(path.read_text(encoding="utf-8"))
    return stored["record"], stored["psnr"]


def gain(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Mean PSNR of the same images after finetuning over that before, in dB, with its bootstrap interval."""
    interval = mean_with_interval(torch.tensor(after) - torch.tensor(before), seed=0)
    return {"mean": interval.mean, "interval": [interval.low, interval.high]}


def draw(kind: str, bundled: CVQTokenizer, tokenizer: CVQTokenizer | None, path: Path) -> None:
    """A sheet of rows: the originals, the bundled tokenizer's, the finetuned one's where there is one."""
    images = shown_images(kind)
    rows = [images, restored(bundled, images), *([] if tokenizer is None else [restored(tokenizer, images)])]
    save_image(grid([picture for row in rows for picture in to_pil(normalize(row))], columns=len(images)), path)


def shown_images(kind: str, size: int = 64) -> UInt8[Tensor, "n 3 h w"]:
    """Pictures for a sheet of a kind, or of "medical": free ones alone."""
    match kind:
        case "textures":
            sources: list[CropSource] = [_only(PhotoConfig().build(size, "train"), CC0_TEXTURES)]
        case "astronomy":
            sources = [_only(DomainSource("astronomy", size, "test"), HUBBLE)]
        case "medical":
            sources = [DomainSource("histology", size, "test"), DomainSource("retina", size, "test")]
        case _:
            return held_out(kind, NUM_SHOWN, size)
    named = {str(i): source for i, source in enumerate(sources)}
    return fixed_images(Mixture(named, dict.fromkeys(named, 1.0), seed=0), NUM_SHOWN)


def _only(source: Any, keys: tuple[str, ...]) -> CropSource:
    source.pictures = [picture for picture in source.pictures if picture.key in keys]
    source.crops = NUM_SHOWN
    return source


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    remedy = "make it with --rerun (5 runs of 2 to 5 minutes, and those of three studies)"
    metrics = ("psnr", "ssim", "perceptual", "kid", "use", "use_if_uniform", "perplexity", "perplexity_ratio")
    needs = ("records.data", "records.state", *(f"records.metrics.{name}" for name in (*metrics, "usage_tokens")))
    return read_result(path, needs, remedy)


HEADINGS = ("pictures", "tokenizer", "PSNR (95 %)", "gain, paired (95 %)", "SSIM (95 %)", "perceptual (95 %)", "KID",
            "use", "if uniform",
            "perplexity", "perplexity/N", "tokens")  # fmt: skip


def finetuned(result: dict[str, Any]) -> TextTable:
    """The kinds of pictures that it was finetuned on."""
    return TextTable(HEADINGS, [_cells(row) for row in result["records"] if row["data"] != "emoji"])


def forgetting(result: dict[str, Any]) -> TextTable:
    """The same tokenizers on emoji, which they began with."""
    return TextTable(HEADINGS, [_cells(row) for row in result["records"] if row["data"] == "emoji"])


def _cells(record: dict[str, Any]) -> list[str]:
    m = record["metrics"]
    state = UNTOUCHED if record["state"] == UNTOUCHED else f"finetuned on {record['state']}"
    intervals = [with_interval(m, name) for name in ("psnr", "ssim", "perceptual")]
    paired = record.get("psnr_gain")
    more = (
        ""
        if paired is None
        else f"{paired['mean']:+.2f} ({paired['interval'][0]:+.2f} to {paired['interval'][1]:+.2f})"
    )
    return [
        record["data"], state, intervals[0], more, *intervals[1:], f"{m['kid']:.3f}", f"{m['use']:.1%}",
        f"{m['use_if_uniform']:.1%}", f"{m['perplexity']:.0f}", f"{m['perplexity_ratio']:.3f}",
        f"{m['usage_tokens']:,}",
    ]  # fmt: skip


STUDY = Study(run, load)
TABLES: Tables = {
    "domains": (RESULT, finetuned), "domains-emoji": (RESULT, forgetting),
    "domains-gratings": (RESULT, failures.gratings_table), "domains-gradients": (RESULT, failures.gradients_table),
}  # fmt: skip
