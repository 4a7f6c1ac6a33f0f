"""A small network as a folder: README.md, config.json and model.safetensors, or one that ships in the package."""

from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from channelvq.config import from_dict, to_dict
from channelvq.errors import InputError
from channelvq.nn.state import misfits, read_settings, read_weights, write_settings, write_weights
from channelvq.whole import write_text_whole


class _Configured(Protocol):
    config: Any


N = TypeVar("N", bound=nn.Module)


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
