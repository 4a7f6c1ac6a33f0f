"""State dicts: their files, what identifies them, and whether they fit a model."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from channelvq.errors import InputError
from channelvq.whole import replace_whole, write_text_whole


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a safetensors file; raises InputError that names a damaged one."""
    try:
        return load_file(path)
    except (ValueError, SafetensorError) as error:
        raise InputError(f"{path}: the file is damaged ({error}); write or download it again") from None


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; raises InputError that names a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (ValueError, SafetensorError) as error:
        raise InputError(f"{path}: the file is damaged ({error}); write or download it again") from None


def read_settings(path: Path) -> Any:
    """What a JSON file holds; raises InputError that names a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: the file is damaged ({error}); write or download it again") from None


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict as a safetensors file, whole or not at all, as readable as any other file.

    metadata: kept in the file; by default {"format": "pt"}, without which transformers refuses it. Raises OSError or
    SafetensorError where it cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    kept = {"format": "pt"} if metadata is None else dict(metadata)
    replace_whole(path, lambda place: save_file(tensors, place, metadata=kept))  # to a file: bytes would be a copy


def write_settings(path: Path, settings: Any) -> None:
    """Write plain data as JSON for people to read, whole or not at all; raises OSError where it cannot be written."""
    text = json.dumps(settings, indent=2) + "\n"
    write_text_whole(path, text)


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes of a tensor, in hexadecimal digits."""
    return _digest({"": tensor})


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's state dict: names in order, dtypes, shapes and bytes; independent of device and file."""
    return _digest(module.state_dict())


def misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that only one of two state dicts has, or that have another shape, in order."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (state, own)]
    return sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(dtype=torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_version(weights: Iterable[Tensor]) -> tuple[tuple[int, int, torch.dtype], ...]:
    """Equal for the same tensors while nothing is written to them: for what is computed from weights and kept.

    Writes through `.data` are not seen; torch does not count them.
    """
    return tuple((weight.data_ptr(), weight._version, weight.dtype) for weight in weights)
