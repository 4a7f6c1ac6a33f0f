"""The doctor's report: as text for a terminal, as JSON, and as one HTML page with its pictures."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from jaxtyping import UInt8
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor

from channelvq.evaluate.doctor.examine import PROTOCOL, DoctorReport, Observation
from channelvq.evaluate.doctor.findings import Finding, findings, verdict
from channelvq.evaluate.doctor.pictures import pictures
from channelvq.evaluate.page import Pictures, details, document, pairs
from channelvq.evaluate.page import figures as picture_list
from channelvq.evaluate.results import write_json, write_text
from channelvq.evaluate.tables import TextTable
from channelvq.images import save_image
from channelvq.terminal import plain, table_title
from channelvq.tokenizer import CVQTokenizer

_COLOURS = {"problem": "red", "warning": "yellow", "note": "blue"}


def figures(report: DoctorReport) -> list[tuple[str, str]]:
    """(name, value) of the whole codebook, for people."""
    usage, bits = report.usage, report.position_bits
    kept, dims = 1 - report.position_errors, report.position_dimensions
    five, median, ninety_five = report.table_norms
    return [
        ("different images", f"{report.num_images}"),
        ("tokens", f"{usage.tokens} ({usage.tokens / report.codebook_size:.1f} N)"),
        ("use", f"{usage.use:.1%} of {report.codebook_size} codes (drawn at random: {usage.use_if_uniform:.1%})"),
        ("perplexity", f"{usage.perplexity:.0f} ({usage.perplexity_ratio:.1%} of N)"),
        ("codes not in use", f"{len(report.dead)}"),
        ("duplicate codes", f"{len(report.duplicates)}"),
        (
            "quantization error",
            f"{report.relative_error:.3f} of the variance (white noise: {report.gaussian_error:.3f})",
        ),
        (f"variance that the codes keep of a {report.position}", f"{kept.min():.0%} to {kept.max():.0%}"),
        (f"effective dimension of a {report.position}", f"{dims.min():.1f} to {dims.max():.1f}"),
        (f"entropy of a {report.position}", f"{bits.min():.1f} to {bits.max():.1f} bits"),
        ("norm of features, codewords", f"{report.feature_norm:.3g}, {report.code_norm:.3g} (rms over tokens)"),
        ("norm of the codes", f"{median:.3g} (5 %: {five:.3g}, 95 %: {ninety_five:.3g})"),
    ]


def text(report: DoctorReport, name: str) -> Group:
    """For a terminal: `rich.print(text(report, "bundled"))`."""
    ailments = findings(report)
    table = Table("figure", "value", title=table_title(f"{name}: {verdict(ailments)}"))
    for row in figures(report):
        table.add_row(*map(plain, row))
    parts: list[Any] = [table]
    for finding in ailments:
        parts.append(plain(f"{finding.level}: {finding.name}", _COLOURS[finding.level]))
        body = f"{finding.measured}.\n{finding.meaning}\n"
        lines = Text.assemble(body, ("Remedy:", "bold"), f" {finding.remedy}")
        parts.append(Padding(lines, (0, 0, 0, 2)))
    return Group(*parts)


def write_record(path: Path, report: DoctorReport, how: dict[str, Any]) -> None:
    """Write a result file; how: of `evaluate.report.protocol`."""
    ailments = findings(report)
    entry = {
        "axis": report.axis,
        "codes": report.codebook_size,
        "dim": report.codebook_dim,
        "tokens": len(report.position_bits),
        "metrics": report.to_dict(),
        "verdict": verdict(ailments),
        "findings": [vars(finding) for finding in ailments],
    }
    write_json(path, {"protocol": {**how, "doctor": PROTOCOL}, "records": [entry]})


def write_page(
    folder: Path,
    name: str,
    data: str,
    tokenizer: CVQTokenizer,
    images: UInt8[Tensor, "n 3 h w"],
    report: DoctorReport,
    seen: Observation,
) -> Path:
    """Draw the pictures, write each as PNG, and report.html, which holds them all; returns the page's path.

    name, data: what the tokenizer and the images are called there. Raises InputError where matplotlib is missing or
    the folder cannot be written.
    """
    drawn = pictures(tokenizer, images, report, seen)
    for title, (image, _) in drawn.items():
        save_image(image, folder / f"{title}.png")
    page = folder / "report.html"
    write_text(page, html_page(name, data, report, drawn))
    return page


def html_page(name: str, data: str, report: DoctorReport, drawn: Pictures) -> str:
    """The report as one HTML document, its pictures inside."""
    ailments = findings(report)
    level = ailments[0].level if ailments else "healthy"
    headings = (report.position, "use", "perplexity", "bits", "error", "dimension", "dB lost without it")
    positions = [
        [str(k), f"{use:.2%}", f"{perplexity:.0f}", f"{bits:.2f}", f"{error:.3f}", f"{dim:.1f}", f"{loss:.3f}"]
        for k, (use, perplexity, bits, error, dim, loss) in enumerate(report.position_rows())
    ]
    return document(
        f"cvq doctor: {name}",
        f"on {data}",
        f'<section class="{level} verdict">{escape(verdict(ailments))}</section>',
        *map(_section, ailments),
        pairs(figures(report)),
        picture_list(drawn),
        details(f"Each {report.position}", TextTable(headings, positions).html()),
        details("Codes", _codes(report)),
        details("How it was measured", pairs(PROTOCOL.items())),
    )


def _section(finding: Finding) -> str:
    return _FINDING.substitute({key: escape(value) for key, value in vars(finding).items()})


def _codes(report: DoctorReport) -> str:
    repeated = [f"{code} = {first}" for code, first in report.duplicates]
    return f"<p>Not in use: {_first(report.dead)}</p><p>Duplicates: {_first(repeated)}</p>"


def _first(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:1000])) or "none"
    return escape(shown + (f" and {len(items) - 1000} more" if len(items) > 1000 else ""))


_FINDING = Template("""<section class="$level"><h3>$level: $name</h3>
<p>$measured.</p><p>$meaning</p><p><b>Remedy.</b> $remedy</p></section>
""")
