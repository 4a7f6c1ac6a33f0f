"""Tables of README and docs, written from results/*.json, so that no figure is typed by hand.

A page holds `<!-- table: axis -->` and `<!-- end -->`; what is between them is replaced.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from channelvq.errors import InputError
from channelvq.evaluate.geneval import report as geneval_report
from channelvq.evaluate.geneval.score import in_order
from channelvq.evaluate.reconstruction import HEADINGS, with_interval
from channelvq.evaluate.results import markdown_table, read_result, reading
from lab.bench import generate as generate_bench
from lab.bench import latency as latency_bench
from lab.bench import lookup as lookup_bench
from lab.bench import train as train_bench
from lab.bundle import detector as bundled_detector
from lab.studies import (
    car_tokens,
    car_tokens_geneval,
    domain_failures,
    domains,
    generator,
    geneval_sampling,
    orderings,
    table1,
)
from lab.study_list import METHODS, RATES

OPENING = "<!-- table:"
SECTION = re.compile(rf"{OPENING} (?P<name>[\w-]+) -->\n(?:(?!{OPENING}).)*?<!-- end -->", re.DOTALL)


def render(page: Path, results: Path) -> str:
    """The text of a page with every table made anew; raises InputError for a table that is not known, or not closed."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise InputError(f"{page}: table {name!r} is unknown, the tables are {', '.join(TABLES)}")
        file, make = TABLES[name]
        result = read_result(results / file, (), f"{page} shows it as table {name!r}")
        with reading(results / file):
            made = make(result)
        if made.count("\n| ") < 2:  # headings and the line below them
            raise InputError(f"{results / file}: holds no row of table {name!r}, which {page} shows")
        return f"<!-- table: {name} -->\n{made}\n<!-- end -->"

    try:
        text = page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{page}: expected a Markdown page in UTF-8 ({error})") from None
    if OPENING in (outside := SECTION.sub("", text)):
        line = next(line for line in outside.splitlines() if OPENING in line)
        raise InputError(f"{page}: {line!r} opens a section that no <!-- end --> closes before the next one")
    return SECTION.sub(table, text)


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
        cells += [with_interval(m, "psnr"), with_interval(m, "ssim"), f"{row['seconds']:.0f}"]
        rows.append(cells)
    first = result["records"][0]["metrics"]
    headings = ("run", "steps", "use", "perplexity", "perplexity/N", "PSNR (95 %)", "SSIM (95 %)", "seconds")
    note = (
        f"\n\n{result['protocol']['n']} held-out images, {first['usage_tokens']} tokens; codes drawn at random would "
        f"be used to {first['use_if_uniform']:.1%}."
    )
    return markdown_table(headings, rows) + note


def bundled(result: dict[str, Any]) -> str:
    """The bundled tokenizer at full length on each kind of image, with the baselines at the same bytes."""
    rows = []
    for record in result["records"]:
        m = record["metrics"]
        others = [_at(record, name, m["bytes"]) for name in ("pca", "jpeg", "webp")]
        cells = [record["data"], with_interval(m, "psnr")]
        cells += [
            f"{m['ssim']:.3f}",
            *others,
            f"{m['use']:.1%}",
            f"{m['perplexity_ratio']:.2f}",
            str(m["usage_tokens"]),
        ]
        rows.append(cells)
    headings = ("images", "PSNR (95 %)", "SSIM", "PCA", "JPEG", "WebP", "use", "perplexity/N", "tokens measured")
    return markdown_table(headings, rows)


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
    return markdown_table(headings, rows)


def study_prefixes(result: dict[str, Any]) -> str:
    """PSNR of every run of a study at every prefix."""
    return prefixes({"records": [row | {"data": row["name"]} for row in result["records"]]})


def methods(result: dict[str, Any]) -> str:
    """Table 1 at small scale."""
    return markdown_table(table1.HEADINGS, table1.rows(result))


def claims(result: dict[str, Any]) -> str:
    """What the claims of table 1 come to."""
    headings = ("claim", *(f"{heading}, difference (95 %)" for heading, _ in table1.MEASURED.values()))
    return markdown_table(headings, table1.claims(result))


def tuning(result: dict[str, Any]) -> str:
    """PSNR on validation images of each method at each rate."""
    psnr = {row["name"]: row["validation"]["psnr_64"] for row in result["records"]}
    rows = [[method, *(f"{psnr[f'{method}, rate {rate}']:.2f}" for rate in RATES)] for method in METHODS]
    return markdown_table(("method", *(f"rate {rate}" for rate in RATES)), rows)


def orders(result: dict[str, Any]) -> str:
    """PSNR of every prefix and the generator's nats for each order of channels."""
    return markdown_table(orderings.HEADINGS, orderings.rows(result))


def generators(result: dict[str, Any]) -> str:
    """Nats and accuracy of every run of the generator study."""
    return markdown_table(generator.HEADINGS, generator.rows(result))


def kinds_of_tokens(result: dict[str, Any]) -> str:
    """Generators on each kind of tokens."""
    return markdown_table(car_tokens.HEADINGS, car_tokens.rows(result))


def claims_of_tokens(result: dict[str, Any]) -> str:
    """Whether generators on one kind of tokens draw better than on another."""
    return markdown_table(("claim", "difference (95 %)", "verdict"), car_tokens_geneval.comparisons(result))


def scene_tokenizers(result: dict[str, Any]) -> str:
    """PSNR at every prefix of the tokenizers of the generator study."""
    return prefixes({"records": [r | {"data": r["name"]} for r in result["records"] if "prefixes" in r["metrics"]]})


def bundled_generator(result: dict[str, Any]) -> str:
    """The bundled generator on held-out scenes."""
    record, m = result["records"][0], result["records"][0]["metrics"]
    cells = [
        f"{sum(record['parameters'].values()) / 1e6:.1f} M", str(result["run"]["steps"]),
        with_interval(m, "nats"),
        f"{m['nats_shuffled']:.3f}", f"{m['nats_unigram']:.3f}", f"{m['top1']:.1%}",
        f"{record['reconstruction']['psnr']:.2f}", f"{result['run']['training_seconds'] / 60:.0f}",
    ]  # fmt: skip
    headings = ("parameters", "steps", "nats (95 %)", "other caption", "counts alone", "top-1",
                "its tokenizer, PSNR", "minutes of training")  # fmt: skip
    return markdown_table(headings, [cells])


def losses(result: dict[str, Any]) -> str:
    """Quality of the loss study's runs, by pixels and by features."""
    rows = []
    for row in result["records"]:
        m = row["metrics"]
        rows.append([
            row["name"], str(row["steps"]), f"{m['psnr']:.2f}", f"{m['ssim']:.3f}",
            with_interval(m, "perceptual", 4),
            f"{m['kid']:.4f}", f"{m['frechet']:.2f}",
            f"{m['use']:.1%}", f"{row['seconds'] / 60:.0f}",
        ])  # fmt: skip
    headings = ("run", "steps", "PSNR", "SSIM", "perceptual distance (95 %)", "KID", "Frechet", "use", "minutes")
    return markdown_table(headings, rows)


def evaluation(result: dict[str, Any]) -> str:
    """Every prefix of one evaluation, and how long it took."""
    record = result["records"][0]
    names = [name for name in HEADINGS if name in record["metrics"]]
    rows = [
        [str(p["tokens"]), str(p["bytes"]), *(with_interval(p, name) for name in names), f"{p['use']:.1%}"]
        for p in record["metrics"]["prefixes"]
    ]
    note = (
        f"{result['protocol']['n']:,} images at all prefixes in {record['evaluation_seconds']:.0f} seconds on "
        f"{record['machine']}, {record['images_per_second']:.0f} images a second."
    )
    return markdown_table(["tokens", "bytes", *(HEADINGS[name] for name in names), "use"], rows) + f"\n\n{note}"


def game(result: dict[str, Any]) -> str:
    """How steady the discriminator was, and what short prefixes restore on validation images."""
    rows = [
        [
            row["name"], *(f"{row['validation'][f'psnr_{k}']:.2f}" for k in (4, 16, 64)),
            f"{row['game']['discriminator_mean']:.2f} +- {row['game']['discriminator_deviation']:.2f}",
            f"{row['game']['gradient_norm_mean']:.1f} ({row['game']['gradient_norm_max']:.1f})",
        ]
        for row in result["records"]
        if "game" in row
    ]  # fmt: skip
    headings = ("run", "PSNR of 4 tokens", "of 16", "of 64", "discriminator loss", "its gradient's norm (largest)")
    return markdown_table(headings, rows)


def training(result: dict[str, Any]) -> str:
    """A step of the engine beside a plain loop's, and the quantizer's share."""
    return markdown_table(train_bench.HEADINGS, train_bench.rows(result))


def perceptual(result: dict[str, Any]) -> str:
    """The cross-style test by pair of art sets."""
    names = list(result["records"][0]["accuracy"])
    rows = [[r["features"], *(f"{r['accuracy'][name]:.3f}" for name in names)] for r in result["records"]]
    return markdown_table(["features", *names], rows)


def generate(result: dict[str, Any]) -> str:
    """Every method of the generate bench."""
    how = result["protocol"]
    return (
        markdown_table(generate_bench.HEADINGS, generate_bench.rows(result))
        + f"\n\n{how['machine']}; {how['backbone']}."
    )


def latency(result: dict[str, Any]) -> str:
    """Both axes side by side."""
    return markdown_table(latency_bench.HEADINGS, latency_bench.rows(result)) + f"\n\n{result['protocol']['machine']}."


def lookup(result: dict[str, Any]) -> str:
    """Every method of the lookup bench."""
    return markdown_table(lookup_bench.HEADINGS, lookup_bench.rows(result)) + f"\n\n{result['protocol']['machine']}."


def other_domains(result: dict[str, Any]) -> str:
    """The bundled tokenizer on other kinds of pictures, untouched and finetuned."""
    return markdown_table(domains.HEADINGS, domains.rows(result))


def forgetting(result: dict[str, Any]) -> str:
    """The same tokenizers on emoji."""
    return markdown_table(domains.HEADINGS, domains.rows(result, forgetting=True))


def contrast_left(result: dict[str, Any]) -> str:
    """Gratings by frequency."""
    return markdown_table(domain_failures.GRATING_HEADINGS, domain_failures.grating_rows(result["failures"]))


def soft_gradients(result: dict[str, Any]) -> str:
    """Gradients by range."""
    return markdown_table(domain_failures.GRADIENT_HEADINGS, domain_failures.gradient_rows(result["failures"]))


def geneval(result: dict[str, Any]) -> str:
    """The generator, its ceiling, the detector and chance."""
    return markdown_table(geneval_report.headings(result), geneval_report.rows(result))


def geneval_faults(result: dict[str, Any]) -> str:
    """Where the generator fails: the share of each task's images by the first thing that is wrong."""
    kinds = ("missing", "count", "colour", "position")
    faults = result["faults"]["generator"]
    rows = [
        [task.replace("_", " "), *(f"{faults[task].get(kind, 0):.1%}" for kind in kinds)] for task in in_order(faults)
    ]
    return markdown_table(("task", "a thing is missing", "too many", "wrong colour", "wrong place"), rows)


def geneval_settings(result: dict[str, Any]) -> str:
    """The bundled generator by guidance, temperature, top-k and top-p."""
    return markdown_table(geneval_sampling.headings(result), geneval_sampling.rows(result))


def detector(result: dict[str, Any]) -> str:
    """GenEval scores of real scenes, as they are and made worse."""
    return markdown_table(*bundled_detector.cells(result))


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "axis": ("axis-small.json", study),
    "domains": ("domains.json", other_domains),
    "domains-emoji": ("domains.json", forgetting),
    "domains-gratings": ("domains.json", contrast_left),
    "domains-gradients": ("domains.json", soft_gradients),
    "codebook": ("codebook-small.json", study),
    "ibq": ("ibq-small.json", study),
    "family": ("family-small.json", study),
    "generate": ("generate-bench.json", generate),
    "latency": ("latency.json", latency),
    "lookup": ("lookup.json", lookup),
    "game": ("losses-small.json", game),
    "losses": ("losses-small.json", losses),
    "train": ("train-bench.json", training),
    "perceptual": ("perceptual.json", perceptual),
    "nested": ("nested-small.json", study_prefixes),
    "nested-scenes": ("nested-scenes-small.json", study_prefixes),
    "orderings": ("orderings-small.json", orders),
    "table1": ("table1-small.json", methods),
    "table1-claims": ("table1-small.json", claims),
    "table1-tuning": ("table1-tuning-small.json", tuning),
    "scaling": ("scaling-small.json", study),
    "bundled": ("bundled-tokenizer.json", bundled),
    "prefixes": ("bundled-tokenizer.json", prefixes),
    "bundled-generator": ("bundled-generator.json", bundled_generator),
    "evaluation": ("evaluate-bench.json", evaluation),
    "detector": ("detector.json", detector),
    "geneval": ("geneval.json", geneval),
    "geneval-faults": ("geneval.json", geneval_faults),
    "geneval-sampling": ("geneval-sampling.json", geneval_settings),
    "generators": ("generator-small.json", generators),
    "car-tokens": ("car-tokens-small.json", kinds_of_tokens),
    "car-tokens-claims": ("car-tokens-small.json", claims_of_tokens),
    "scene-tokenizers": ("generator-small.json", scene_tokenizers),
}
