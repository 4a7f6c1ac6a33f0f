"""The large parts of a checkpoint in shards, as ranks with a part of the weights each (FSDP) keep them; and as a whole.

    pytorch_model_fsdp_0/   optimizer_0/   average-NAME/     by torch.distributed.checkpoint, a file of each rank

Ranks of any number read what others wrote. `gathered` makes whole tensors of shards, `spread` shards of whole ones.
Nothing that is read can execute anything: the list of the shards, which torch reads as a pickle, is looked at before.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import Unpickler, UnpicklingError
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed import ProcessGroup

from channelvq.train.averages import ShardedAverage
from channelvq.train.plain import Plain, staged

MODEL, OPTIMIZER, AVERAGE = "pytorch_model_fsdp_0", "optimizer_0", "average-"  # the first two are Accelerate's names
LIST = ".metadata"
# All that a list of shards is made of, beside types of numbers.
SHARD_CLASSES = {
    "pathlib": {"PosixPath", "WindowsPath"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Shards:
    """States of one rank, by the folders that they are written to. group: by which the ranks agree on what is written.

    It is one of its own where they are written beside the training, which has its own messages under way.
    """

    states: dict[str, dict[str, Any]]
    group: ProcessGroup | None = None

    @classmethod
    def of(
        cls, accelerator: Accelerator, averages: Mapping[str, ShardedAverage], group: ProcessGroup | None = None
    ) -> Self:
        """As they are now, not copied."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

        model, optimizer = accelerator._models[0], accelerator._optimizers[0]
        states = {
            MODEL: {"model": get_model_state_dict(model)},
            OPTIMIZER: {"optimizer": get_optimizer_state_dict(model, optimizer)},
        }
        return cls(states | {AVERAGE + name: average.state() for name, average in averages.items()}, group)

    def staged(self) -> Self:
        """A copy in the CPU's memory, which training leaves as it is."""
        return type(self)(staged(self.states), self.group)

    def write(self, folder: Path) -> None:
        """Into a checkpoint's folder; all ranks call it together, and when the main one is done all are."""
        from torch.distributed.checkpoint.state_dict_saver import save  # takes long to import

        for name, state in self.states.items():
            save(state, checkpoint_id=folder / name, process_group=self.group)


def load(accelerator: Accelerator, folder: Path, averages: Mapping[str, ShardedAverage]) -> None:
    """A checkpoint of shards into what is trained in shards, of any number of ranks; all of them call it together."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.checkpoint.state_dict_loader import load

    model, optimizer = accelerator._models[0], accelerator._optimizers[0]
    states = Shards.of(accelerator, averages).states
    # Weights that were frozen so far have no state there, and none here then.
    listed = FileSystemReader(folder / OPTIMIZER).read_metadata().state_dict_metadata
    updated = {key.removeprefix("optimizer.state.").rpartition(".")[0] for key in listed}
    state = states[OPTIMIZER]["optimizer"]
    state["state"] = {name: own for name, own in state["state"].items() if name in updated}
    for name, part in states.items():
        load(part, checkpoint_id=folder / name)
    set_model_state_dict(model, states[MODEL]["model"])
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(strict=False))


def are_there(folder: Path) -> bool:
    """Whether a checkpoint is of this form."""
    return (folder / MODEL).is_dir() and not (folder / "model.safetensors").is_file()


def average_list(name: str) -> str:
    """By which file in a checkpoint the moving average of a model is there."""
    return f"{AVERAGE}{name}/{LIST}"


# As a whole


def gathered(folder: Path) -> Plain:
    """The shards of a checkpoint as whole tensors, by one process alone.

    Raises ValueError where the shards are smaller than what they say they hold.
    """
    check_lists(folder)
    with weights_only():
        model: dict[str, Tensor] = _whole(folder / MODEL)["model"]
        optimizer = _whole(folder / OPTIMIZER)["optimizer"]
        averages = {path.name.removeprefix(AVERAGE): _whole(path) for path in sorted(folder.glob(f"{AVERAGE}*"))}
    # Averages hold weights alone; what else there is in a model, it has itself.
    states = {name: {"n_averaged": average["count"], **_prefixed(model | average["means"])}
              for name, average in averages.items()}  # fmt: skip
    return Plain([model], [_numbered(optimizer)], states)


def _whole(folder: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(folder)
    listed = reader.read_metadata()
    tensors = {
        name: (entry.size, entry.properties.dtype)
        for name, entry in listed.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    asked = sum(size.numel() * dtype.itemsize for size, dtype in tensors.values())
    if asked > (there := sum(path.stat().st_size for path in folder.iterdir())):
        raise ValueError(f"{folder.name} lists {asked} bytes of tensors, its files hold {there}")
    state: dict[str, Any] = dict.fromkeys(listed.state_dict_metadata)
    state |= {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in tensors.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it shall be
        load(state, storage_reader=reader, no_dist=True)
    return unflatten_state_dict(state, listed.planner_data)


def _prefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def _numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """With the parameters by their numbers, as an optimizer has them, and not by their names."""
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    number = {name: i for i, name in enumerate(names)}
    return {
        "state": {number[name]: state for name, state in optimizer["state"].items()},
        "param_groups": [
            group | {"params": [number[name] for name in group["params"]]} for group in optimizer["param_groups"]
        ],
    }


def spread(accelerator: Accelerator, folder: Path, averages: Mapping[str, ShardedAverage]) -> None:
    """A checkpoint of whole tensors into what is trained in shards; all ranks call it together, the main one reads."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    model, optimizer = accelerator._models[0], accelerator._optimizers[0]
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    main = accelerator.is_main_process
    read = Plain.read(folder, 1, 1, averages) if main else Plain([{}], [{}], {name: {} for name in averages})
    for name, average in averages.items():
        state: dict[str, Any] = {key.removeprefix("module."): value for key, value in read.averages[name].items()}
        count = torch.as_tensor(state.pop("n_averaged", 0), device=accelerator.device)
        set_model_state_dict(model, state, options=options)
        average.take(model, int(_from_main(count)))
    set_model_state_dict(model, dict[str, Any](read.models[0]), options=options)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {parameter: name for name, parameter in model.named_parameters()}
    flat = [names[parameter] for parameter in parameters]
    set_optimizer_state_dict(model, optimizer, _named(read.optimizers[0], flat) if main else {}, options=options)
    # Weights that were frozen so far have no state there, and none here then.
    updated = torch.tensor([i in read.optimizers[0].get("state", ()) for i in range(len(flat))])
    for parameter, there in zip(parameters, _from_main(updated.to(accelerator.device)).tolist(), strict=True):
        if not there:
            optimizer.state.pop(parameter, None)


def _from_main(tensor: Tensor) -> Tensor:
    torch.distributed.broadcast(tensor, 0)
    return tensor


def _named(optimizer: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The inverse of `_numbered`. names: of the parameters in their order."""
    return {
        "state": {names[i]: state for i, state in optimizer["state"].items()},
        "param_groups": [
            group | {"params": [names[i] for i in group["params"]]} for group in optimizer["param_groups"]
        ],
    }


# What is read executes nothing


@contextmanager
def weights_only() -> Iterator[None]:
    """Within it torch unpickles tensors and plain data only, whoever asks.

    torch.distributed.checkpoint asks for any object where FSDP's shards hold what is no tensor.
    """
    wanted = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_lists(folder: Path) -> None:
    """UnpicklingError, or another error of reading, where a list of shards in a checkpoint would execute something."""
    for path in folder.rglob(LIST):
        with path.open("rb") as file:
            ShardList(file).load()


class ShardList(Unpickler):
    """What torch reads as a pickle, read with the classes that it is made of alone."""

    def find_class(self, module: str, name: str) -> Any:
        """As `Unpickler` says; raises UnpicklingError for all others."""
        # By exact names: in a dotted one ("torch", "os.system") every module that another imports can be reached.
        number = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if number or name in SHARD_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise UnpicklingError(f"it names {module}.{name}")
