"""Result files: what was measured, on what, with what, and JSON that is the same to the byte for the same result."""

import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from channelvq.errors import InputError
from channelvq.evaluate.metrics import BASIC, check_images
from channelvq.files import write_atomically
from channelvq.pretrained import tensor_sha256, weights_sha256
from channelvq.tokenizer import CVQConfig

# An array of more than 16 numbers, a line for each; no string of JSON has a line break, so none is taken for one.
_LONG_NUMBERS = re.compile(r"(?<=\[)\s+(?:-?\d[-+.e\d]*|null)(?:,\s+(?:-?\d[-+.e\d]*|null)){16,}\s+(?=\])")


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
        "metrics": "; ".join(["means over images", *(f"{name} {metric.definition}" for name, metric in BASIC.items())]),
        "interval": "95% percentile bootstrap over images, 2000 resamples",
        "libraries": library_versions(("channelvq", "torch", "torchmetrics", "pillow")),
        "tokenizer_sha256": None if tokenizer is None else weights_sha256(tokenizer),
        "git": git_revision(),
    }


def make_record(
    model: CVQConfig,
    *,
    data: str,
    split: str,
    metrics: Mapping[str, Any],
    seed: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    git: str | None = None,
    run: str | None = None,
) -> dict[str, Any]:
    """One entry of a result file's "records": what was measured, and how it was trained where that is known.

    data, split: short names. seconds: of training. git: of the checkout it was trained in. run: its key in the store.
    """
    return {
        "axis": model.axis,
        "quantizer": model.quantizer.kind,
        "codes": model.quantizer.codebook_size,
        "dim": model.codebook_dim,
        "tokens": model.num_tokens,
        "seed": seed,
        "steps": steps,
        "data": data,
        "split": split,
        "metrics": dict(metrics),
        "seconds": seconds,
        "git": git,
        "run": run,
    }


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions by name."""
    return {name: version(name) for name in names}


def machine() -> str:
    """The threads that torch computes with, of the processor's cores."""
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores ({platform.machine()})"


def git_revision() -> str | None:
    """Commit of the checkout this package runs from, with "-dirty" where it has changes; None when it is installed."""
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def write_json(path: str | Path, obj: Any) -> None:
    """Write JSON atomically: floats with 6 significant digits (null for nan and infinities), keys sorted.

    An array of more than 16 numbers is one line.

    A reader sees the old file or the new one, never a part. Folders are made. Takes mappings, sequences, tensors and
    plain values; raises InputError, with nothing written, for anything else and for a place that cannot be written.
    """
    text = json.dumps(as_written(obj), indent=2, sort_keys=True, allow_nan=False)
    write_text(path, _LONG_NUMBERS.sub(lambda match: re.sub(r"\s+", " ", match[0]).strip(), text) + "\n")


def as_written(obj: Any) -> Any:
    """What `write_json` makes of it: plain values, floats rounded; to compare with what a file says."""
    return _plain(obj, "$")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """InputError that names the file where what is made of its content meets another shape than it expects."""
    try:
        yield
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, StopIteration) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error) or "an entry is missing"
        raise InputError(f"{path}: a result of another kind, or damaged: {what}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, as UTF-8; folders are made. Raises InputError where it cannot be written."""
    _write(Path(path), lambda: text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically; folders are made. Raises InputError where it cannot be written."""
    _write(Path(path), lambda: content)


def _write(path: Path, content: Callable[[], bytes]) -> None:
    try:
        write_atomically(path, lambda stream: stream.write(content()))
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
