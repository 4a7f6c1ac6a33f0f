"""Result files side by side: only what was measured in one way, and image by image where they keep such values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from channelvq.config import differences
from channelvq.errors import InputError
from channelvq.evaluate.metrics import METRICS, Interval, SetMetric, mean_with_interval, with_interval
from channelvq.evaluate.results import reading
from channelvq.evaluate.tables import TextTable
from channelvq.files import parse_json

COMPARED = ("tokenizer_sha256", "git")  # what may differ: it is what is compared
NOT_SHOWN = ("baselines",)  # says nothing of the figures in the table
PERCENTAGES = {"use": "use", "perplexity_ratio": "perp./N"}


@dataclass(frozen=True)
class Row:
    """One record of a file with the protocol it was measured by."""

    name: str
    protocol: dict[str, Any]
    record: dict[str, Any]

    @property
    def measured_by(self) -> dict[str, Any]:
        """The part of the protocol that has to be equal."""
        return {key: value for key, value in self.protocol.items() if key not in (*COMPARED, *NOT_SHOWN)}

    @property
    def metrics(self) -> dict[str, Any]:
        """Its figures."""
        return self.record["metrics"]


@dataclass(frozen=True)
class Comparison:
    """rows: the first is what the others are compared with. allowed: differences of protocol that were let pass.

    paired: for each other row and metric the mean difference to the first, image by image, with its interval.
    """

    rows: tuple[Row, ...]
    allowed: tuple[str, ...]
    paired: dict[str, dict[str, Interval]]

    @property
    def columns(self) -> list[str]:
        """Metrics that at least one row has; those of feature networks only where all rows have the same network."""
        networks = {json.dumps(row.protocol.get("feature_network"), sort_keys=True) for row in self.rows}
        names = [name for name in METRICS.names() if len(networks) == 1 or not isinstance(METRICS[name], SetMetric)]
        return [name for name in (*names, *PERCENTAGES) if any(name in row.metrics for row in self.rows)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        rows = [{"name": row.name, **{name: row.metrics.get(name) for name in self.columns}} for row in self.rows]
        paired = {
            name: {metric: vars(difference) for metric, difference in by_metric.items()}
            for name, by_metric in self.paired.items()
        }
        return {"protocol": self.rows[0].measured_by, "allowed": list(self.allowed), "rows": rows, "paired": paired}

    def text_table(self) -> TextTable:
        """A row a record, a column a metric; what was let pass has a star."""
        headings = ["result", "tokens", *(PERCENTAGES.get(name) or METRICS[name].heading for name in self.columns)]
        mark = " *" if self.allowed else ""
        rows = [
            [row.name + mark, str(row.record.get("tokens", "")), *(_cell(row.metrics, name) for name in self.columns)]
            for row in self.rows
        ]
        return TextTable(headings, rows)

    def notes(self) -> list[str]:
        """Paired differences, and what was let pass, a line each."""
        first = self.rows[0].name
        notes = [
            f"{name} - {first}, image by image: {METRICS[metric].heading} {d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})"
            for name, by_metric in self.paired.items()
            for metric, d in by_metric.items()
        ]
        return notes + [f"* measured in different ways, allowed: {difference}" for difference in self.allowed]

    def table(self) -> Table:
        """For a terminal; intervals stand below their means."""
        return self.text_table().terminal()

    def markdown(self) -> str:
        """The table and its notes."""
        return "\n\n".join([self.text_table().markdown(), *self.notes()]) + "\n"


def compare(paths: Sequence[Path], *, allow: Sequence[str] = (), data: str | None = None) -> Comparison:
    """The records of result files in one table; data: only those of this name.

    Raises InputError for a file that is no result, and where two records were measured in different ways, naming each
    difference. allow: keys that may differ, such as "n" or "libraries.torch" (or "libraries" for all of them).
    """
    stems = [path.stem for path in paths]
    names = [path.stem if stems.count(path.stem) == 1 else str(path) for path in paths]
    rows = [row for path, name in zip(paths, names, strict=True) for row in _rows(path, name, data)]
    if not rows:
        raise InputError(f"compare: no record of the data {data!r} in {', '.join(map(str, paths))}")
    differing = {
        f"{row.name}: {line}": line.split(":")[0]
        for row in rows[1:]
        for line in differences(rows[0].measured_by, row.measured_by)
    }
    refused = [text for text, key in differing.items() if not any(f"{key}.".startswith(f"{name}.") for name in allow)]
    if refused:
        keys = sorted({differing[text] for text in refused})
        more = f"; all that differs: {', '.join(keys)}" if len(refused) > 3 else ""
        raise InputError(
            f"compare: measured in different ways, so their figures do not compare; against {rows[0].name}, "
            f"{'; '.join(refused[:3])}{more}; measure alike, choose records with --data, or let a key pass with --allow"
        )
    return Comparison(tuple(rows), tuple(differing), {row.name: d for row in rows[1:] if (d := _paired(rows[0], row))})


def _rows(path: Path, file: str, data: str | None) -> list[Row]:
    try:
        result = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a result file: {error}") from None
    records = result.get("records") if isinstance(result, dict) else None
    protocol = result.get("protocol") if isinstance(result, dict) else None
    if not isinstance(protocol, dict) or not isinstance(records, list) or not records:
        raise InputError(f'{path}: is no result file: expected "protocol" and "records"')
    rows = []
    for number, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("metrics"), dict):
            raise InputError(f'{path}: is no result file: records[{number}] has no "metrics"')
        if data is None or record.get("data") == data:
            own = record.get("protocol")
            name = f"{file} {record.get('name') or record.get('data') or number}" if len(records) > 1 else file
            with reading(path):
                row = Row(name, {**protocol, **(own or {})}, record)
                _check(row)
            rows.append(row)
    return rows


def _check(row: Row) -> None:
    """Read all that a comparison reads of a row, so that what is damaged is told with its file."""
    for name in (*METRICS.names(), *PERCENTAGES):
        _cell(row.metrics, name)
    for values in _longest(row.record.get("per_image")).values():
        if _numbers(values).ndim != 1:
            raise InputError("per_image: expected a list of numbers by number of tokens")


def _paired(a: Row, b: Row) -> dict[str, Interval]:
    """Mean differences b - a of the longest prefixes, over images; none where the images are not the same."""
    if a.protocol.get("data_sha256") is None or a.protocol["data_sha256"] != b.protocol.get("data_sha256"):
        return {}
    values = [_longest(row.record.get("per_image")) for row in (a, b)]
    return {
        metric: mean_with_interval(_numbers(values[1][metric]) - _numbers(values[0][metric]), seed=0)
        for metric in METRICS.names()
        if all(metric in by_metric for by_metric in values) and len(values[0][metric]) == len(values[1][metric])
    }


def _numbers(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _longest(per_image: Any) -> Mapping[str, list[float]]:
    """By metric the values of the longest prefix."""
    if not isinstance(per_image, dict):
        return {}
    return {metric: by_tokens[max(by_tokens, key=int)] for metric, by_tokens in per_image.items() if by_tokens}


def _cell(metrics: Mapping[str, Any], name: str) -> str:
    value = metrics.get(name)
    if not isinstance(value, (int, float)):
        return "-"
    if name in PERCENTAGES:
        return f"{value:.1%}" if name == "use" else f"{value:.2f}"
    return with_interval(metrics, name)
