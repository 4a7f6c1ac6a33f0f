"""Stored result files, read and checked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from channelvq.errors import InputError


def read_result(path: Path, needs: Sequence[str], remedy: str) -> dict[str, Any]:
    """A stored result that has what a table is made of; raises InputError, with the remedy, for any other file.

    needs: dotted keys such as "protocol.n" and "records.metrics.psnr"; of a list it is every entry, at least one.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no stored result; {remedy}")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON ({error}); {remedy}") from None
    missing = (place for need in ("protocol", *needs) if (place := _missing(result, need.split("."), "")))
    if place := next(missing, None):
        raise InputError(f"{path}: a result of another kind: {place} is missing; {remedy}")
    return result


def others(path: Path, key: str, these: Sequence[str]) -> list[dict[str, Any]]:
    """The records of a stored result of which a part is measured anew: those whose `key` is none of `these`."""
    stored = read_result(path, (f"records.{key}",), "measure all of it")
    return [row for row in stored["records"] if row[key] not in these]


def _missing(data: Any, keys: Sequence[str], place: str) -> str | None:
    """The first place where the keys lead nowhere; None where all lead to something."""
    if isinstance(data, list):
        inside = (_missing(entry, keys, f"{place}[{i}]") for i, entry in enumerate(data))
        return next(filter(None, inside), None) if data else f"{place}[0]"
    if not keys:
        return place if data is None else None
    inner = f"{place}.{keys[0]}" if place else keys[0]
    return _missing(data[keys[0]], keys[1:], inner) if isinstance(data, dict) and keys[0] in data else inner
