"""What is saved and loaded: weights as safetensors, settings as JSON, networks as folders of both."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from channelvq.config import from_dict, to_dict
from channelvq.errors import InputError
from channelvq.files import replace_whole, write_text_whole


class _Configured(Protocol):
    config: Any


N = TypeVar("N", bound=nn.Module)


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


def save_network(network: _Configured, folder: Path) -> None:
    """Write README.md, model.safetensors and config.json."""
    assert isinstance(network, nn.Module)
    name = type(network).__name__
    card = (
        f"# {name}\n\nTrained with `channelvq`; `from {type(network).__module__} import {name}`, "
        f"`{name}.load(folder)`.\nWhat it is made of: config.json.\n"
    )
    write_text_whole(folder / "README.md", card)
    write_weights(folder / "model.safetensors", network.state_dict())
    write_settings(folder / "config.json", to_dict(network.config))


def load_network(kind: type[N], config: type, source: str | Path, name: str, what: str) -> N:
    """A `kind(config)` from "bundled" (the package's folder `name`) or from a folder that `save_network` wrote.

    In evaluation mode, float32 and without gradients of its own. what: its name in errors. Raises InputError for a
    folder without the files, and for files that are damaged or do not fit together.
    """
    if source == "bundled":
        with resources.as_file(resources.files("channelvq") / "bundled" / name) as folder:
            return _load(kind, config, folder, what)
    return _load(kind, config, Path(source), what)


def _load(kind: type[N], config: type, folder: Path, what: str) -> N:
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{what} {folder}: there is no {name}; expected 'bundled' or a folder")
    settings = read_settings(folder / "config.json")
    network = kind(from_dict(config, settings, where=str(folder / "config.json")))
    state = read_weights(folder / "model.safetensors")
    if wrong := misfits(state, network.state_dict()):
        raise InputError(f"{folder / 'model.safetensors'} does not fit its config.json: {wrong[:5]}")
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return network.eval().requires_grad_(False)
