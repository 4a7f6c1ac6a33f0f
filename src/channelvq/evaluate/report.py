"""Result files: what was measured, on what, with what, and JSON that is the same to the byte for the same result."""

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor, nn

from channelvq.data.whole import write_whole
from channelvq.errors import InputError
from channelvq.evaluate.metrics import check_images
from channelvq.nn.state import tensor_sha256, weights_sha256


def protocol(
    images: UInt8[Tensor, "n 3 h w"],
    *,
    data: str,
    split: str,
    resize: str,
    crop: str,
    tokenizer: nn.Module | None = None,
) -> dict[str, Any]:
    """How a measurement was made; figures with different protocols are not comparable.

    images: the very pixels measured on, kept as a hash. data, split: their names. resize, crop: in words, how they came
    to their size. tokenizer: kept as a hash of its weights. Raises InputError for images that are not uint8.
    """
    check_images(images)
    return {
        "data": data,
        "data_sha256": tensor_sha256(images),
        "split": split,
        "n": len(images),
        "image_size": list(images.shape[-2:]),
        "resize": resize,
        "crop": crop,
        "rounding": "to nearest uint8 before any metric",
        "metrics": "means over images; psnr capped at 100 dB; ssim gaussian 11x11 sigma 1.5, range 255, no border",
        "interval": "95% percentile bootstrap over images, 2000 resamples",
        "libraries": libraries("channelvq", "torch", "torchmetrics", "pillow"),
        "tokenizer_sha256": None if tokenizer is None else weights_sha256(tokenizer),
        "git": git_revision(),
    }


def libraries(*names: str) -> dict[str, str]:
    """The versions of installed distributions."""
    return {name: version(name) for name in names}


def git_revision() -> str | None:
    """Commit of the checkout this package runs from, with "-dirty" where it has changes; None when it is installed."""
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def write_json(path: str | Path, obj: Any) -> None:
    """Write JSON atomically: floats with 6 significant digits (null for nan and infinities), keys sorted.

    A reader sees the old file or the new one, never a part. Folders are made. Takes mappings, sequences, tensors and
    plain values; raises InputError, with nothing written, for anything else and for a place that cannot be written.
    """
    write_text(path, json.dumps(_plain(obj, "$"), indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_result(path: Path, metric: str, remedy: str) -> dict[str, Any]:
    """A stored result whose records have a metric; raises InputError, with the remedy, for any other file."""
    if not path.is_file():
        raise InputError(f"{path}: there is no stored result; {remedy}")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected JSON ({error}); {remedy}") from None
    records = result.get("records") if isinstance(result, dict) and "protocol" in result else None
    if not isinstance(records, list) or not any(metric in each.get("metrics", {}) for each in records):
        raise InputError(f'{path}: expected "protocol" and "records" with the metric {metric!r}; {remedy}')
    return result


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, as UTF-8; folders are made. Raises InputError where it cannot be written."""
    path = Path(path)
    try:
        write_whole(path, lambda stream: stream.write(text.encode("utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {str(path)!r}: {error}") from error


def _plain(obj: Any, where: str) -> Any:
    match obj:
        case None | bool() | int() | str():
            return obj
        case float():
            return float(f"{obj:.6g}") if math.isfinite(obj) else None
        case Path():
            return obj.as_posix()
        case Tensor():
            return _plain(obj.tolist(), where)
        case Mapping() if all(isinstance(key, str) for key in obj):
            return {key: _plain(value, f"{where}.{key}") for key, value in obj.items()}
        case Sequence():
            return [_plain(value, f"{where}[{index}]") for index, value in enumerate(obj)]
        case _:
            raise InputError(
                f"write_json: {where} is a {type(obj).__name__}, which is not plain data (keys are strings)"
            )


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
