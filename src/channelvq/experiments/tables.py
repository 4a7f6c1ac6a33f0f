"""Tables of README and docs, written from results/*.json, so that no figure is typed by hand.

A page holds `<!-- table: axis -->` and `<!-- end -->`; what is between them is replaced.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from channelvq.errors import InputError
from channelvq.evaluate import geneval_report
from channelvq.evaluate.geneval import in_order
from channelvq.experiments import generator, geneval_sampling, lookup_bench

SECTION = re.compile(r"<!-- table: (?P<name>[\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def render(page: Path, results: Path) -> str:
    """The text of a page with every table made anew; raises InputError for a table that is not known."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise InputError(f"{page}: table {name!r} is unknown, the tables are {', '.join(TABLES)}")
        file, make = TABLES[name]
        return f"<!-- table: {name} -->\n{make(json.loads((results / file).read_text()))}\n<!-- end -->"

    return SECTION.sub(table, page.read_text())


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def study(result: dict[str, Any]) -> str:
    """Use, perplexity and quality of each run of a study."""
    rows = []
    for row in result["records"]:
        m = row["metrics"]
        cells = [
            row["name"],
            str(row["steps"]),
            f"{m['use']:.1%}",
            f"{m['perplexity']:.0f}",
            f"{m['perplexity_ratio']:.2f}",
        ]
        cells += [f"{m['psnr']:.2f} ({m['psnr_interval'][0]:.2f} to {m['psnr_interval'][1]:.2f})"]
        cells += [
            f"{m['ssim']:.3f} ({m['ssim_interval'][0]:.3f} to {m['ssim_interval'][1]:.3f})",
            f"{row['seconds']:.0f}",
        ]
        rows.append(cells)
    first = result["records"][0]["metrics"]
    headings = ("run", "steps", "use", "perplexity", "perplexity/N", "PSNR (95 %)", "SSIM (95 %)", "seconds")
    note = (
        f"\n\n{result['protocol']['n']} held-out images, {first['usage_tokens']} tokens; codes drawn at random would "
        f"be used to {first['use_if_uniform']:.1%}."
    )
    return _markdown(headings, rows) + note


def bundled(result: dict[str, Any]) -> str:
    """The bundled tokenizer at full length on each kind of image, with the baselines at the same bytes."""
    rows = []
    for record in result["records"]:
        m = record["metrics"]
        others = [_at(record, name, m["bytes"]) for name in ("pca", "jpeg", "webp")]
        cells = [record["data"], f"{m['psnr']:.2f} ({m['psnr_interval'][0]:.2f} to {m['psnr_interval'][1]:.2f})"]
        cells += [
            f"{m['ssim']:.3f}",
            *others,
            f"{m['use']:.1%}",
            f"{m['perplexity_ratio']:.2f}",
            str(m["usage_tokens"]),
        ]
        rows.append(cells)
    headings = ("images", "PSNR (95 %)", "SSIM", "PCA", "JPEG", "WebP", "use", "perplexity/N", "tokens measured")
    return _markdown(headings, rows)


def _at(record: dict[str, Any], baseline: str, budget: int) -> str:
    points = record["baselines"]["curves"][baseline]
    return next((f"{point['psnr']:.2f}" for point in points if point["budget"] == budget), "-")


def prefixes(result: dict[str, Any]) -> str:
    """PSNR of the bundled tokenizer at every prefix length."""
    lengths = [prefix["tokens"] for prefix in result["records"][0]["metrics"]["prefixes"]]
    sizes = [prefix["bytes"] for prefix in result["records"][0]["metrics"]["prefixes"]]
    headings = ["PSNR (dB)", *(f"{k} ({size} B)" for k, size in zip(lengths, sizes, strict=True))]
    rows = [
        [record["data"], *(f"{prefix['psnr']:.2f}" for prefix in record["metrics"]["prefixes"])]
        for record in result["records"]
    ]
    return _markdown(headings, rows)


def generators(result: dict[str, Any]) -> str:
    """Nats and accuracy of every run of the generator study."""
    return _markdown(generator.HEADINGS, generator.rows(result))


def scene_tokenizers(result: dict[str, Any]) -> str:
    """PSNR at every prefix of the tokenizers of the generator study."""
    return prefixes({"records": [r | {"data": r["name"]} for r in result["records"] if "prefixes" in r["metrics"]]})


def bundled_generator(result: dict[str, Any]) -> str:
    """The bundled generator on held-out scenes."""
    record, m = result["records"][0], result["records"][0]["metrics"]
    cells = [
        f"{sum(record['parameters'].values()) / 1e6:.1f} M", str(result["run"]["steps"]),
        f"{m['nats']:.3f} ({m['nats_interval'][0]:.3f} to {m['nats_interval'][1]:.3f})",
        f"{m['nats_shuffled']:.3f}", f"{m['nats_unigram']:.3f}", f"{m['top1']:.1%}",
        f"{record['reconstruction']['psnr']:.2f}", f"{result['run']['training_seconds'] / 60:.0f}",
    ]  # fmt: skip
    headings = ("parameters", "steps", "nats (95 %)", "other caption", "counts alone", "top-1",
                "its tokenizer, PSNR", "minutes of training")  # fmt: skip
    return _markdown(headings, [cells])


def losses(result: dict[str, Any]) -> str:
    """Quality of the loss study's runs, by pixels and by features."""
    rows = []
    for row in result["records"]:
        m = row["metrics"]
        rows.append([
            row["name"], str(row["steps"]), f"{m['psnr']:.2f}", f"{m['ssim']:.3f}",
            f"{m['perceptual']:.4f} ({m['perceptual_low']:.4f} to {m['perceptual_high']:.4f})", f"{m['kid_ours']:.4f}",
            f"{m['use']:.1%}", f"{row['seconds'] / 60:.0f}",
        ])  # fmt: skip
    headings = ("run", "steps", "PSNR", "SSIM", "perceptual distance (95 %)", "kernel distance", "use", "minutes")
    return _markdown(headings, rows)


def perceptual(result: dict[str, Any]) -> str:
    """The cross-style test by pair of art sets."""
    names = list(result["records"][0]["accuracy"])
    rows = [[r["features"], *(f"{r['accuracy'][name]:.3f}" for name in names)] for r in result["records"]]
    return _markdown(["features", *names], rows)


def lookup(result: dict[str, Any]) -> str:
    """Every method of the lookup bench."""
    return _markdown(lookup_bench.HEADINGS, lookup_bench.rows(result)) + f"\n\n{result['protocol']['machine']}."


def geneval(result: dict[str, Any]) -> str:
    """The generator, its ceiling, the detector and chance."""
    return _markdown(geneval_report.headings(result), geneval_report.rows(result))


def geneval_faults(result: dict[str, Any]) -> str:
    """Where the generator fails: the share of each task's images by the first thing that is wrong."""
    kinds = ("missing", "count", "colour", "position")
    faults = result["faults"]["generator"]
    rows = [
        [task.replace("_", " "), *(f"{faults[task].get(kind, 0):.1%}" for kind in kinds)] for task in in_order(faults)
    ]
    return _markdown(("task", "a thing is missing", "too many", "wrong colour", "wrong place"), rows)


def geneval_settings(result: dict[str, Any]) -> str:
    """The bundled generator by guidance, temperature, top-k and top-p."""
    return _markdown(geneval_sampling.headings(result), geneval_sampling.rows(result))


def detector(result: dict[str, Any]) -> str:
    """GenEval scores of real scenes, as they are and made worse."""
    tasks = in_order(result["records"][0]["scores"])
    rows = [[r["images"], *(f"{r['scores'][task]:.3f}" for task in tasks)] for r in result["records"]]
    return _markdown(["images", *(task.replace("_", " ") for task in tasks)], rows)


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "axis": ("axis-small.json", study),
    "codebook": ("codebook-small.json", study),
    "ibq": ("ibq-small.json", study),
    "lookup": ("lookup.json", lookup),
    "losses": ("losses-small.json", losses),
    "perceptual": ("perceptual.json", perceptual),
    "scaling": ("scaling-small.json", study),
    "bundled": ("bundled-tokenizer.json", bundled),
    "prefixes": ("bundled-tokenizer.json", prefixes),
    "bundled-generator": ("bundled-generator.json", bundled_generator),
    "detector": ("detector.json", detector),
    "geneval": ("geneval.json", geneval),
    "geneval-faults": ("geneval.json", geneval_faults),
    "geneval-sampling": ("geneval-sampling.json", geneval_settings),
    "generators": ("generator-small.json", generators),
    "scene-tokenizers": ("generator-small.json", scene_tokenizers),
}
