"""How a run uses its machines: processes, precision, memory format, compilation and trackers, by Accelerate."""

import copy
import importlib.util
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import GeneralTracker
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    LoggerType,
    ProjectConfiguration,
)
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from channelvq.config import to_dict
from channelvq.devices import resolve_device
from channelvq.errors import InputError
from channelvq.nn.processor import bfloat16_speedup, check_compiler
from channelvq.train.config import TrainConfig

# Under it bfloat16 is likely to cost time, though not all of a step is products, and halved activations give some back.
SLOW_BFLOAT16 = 0.8
MOST_SHAPES = 64  # that a network is compiled for
# The other ranks wait while the main one evaluates.
PATIENCE = timedelta(hours=4)
# torchrun's own variable: without it ranks that are begun again read in its store where the dead ones listened.
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
# Packages of the trackers, by any of which Accelerate can write.
TRACKER_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}


def build_accelerator(config: TrainConfig, idle_parameters: bool) -> Accelerator:
    """Accelerate by the settings of a run and of `accelerate launch`; InputError for what cannot work."""
    run_dir = Path(config.output_dir)
    trackers: list[str | LoggerType | GeneralTracker] = list(config.trackers or ())
    # Accelerate keeps the first run's precision for the process; several runs in one process may differ.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        # Accelerate by itself would take Apple's GPU, which has no float64.
        cpu=config.device == "cpu" or (torch.backends.mps.is_available() and not on_gpu(config)),
        mixed_precision=used_precision(config),
        # Said here, or environment variables of Accelerate would say it: the recipe alone decides.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        log_with=trackers or None,
        project_config=ProjectConfiguration(project_dir=str(run_dir), logging_dir=str(run_dir / "trackers")),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=idle_parameters),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    ranks, parts = accelerator.num_processes, config.accumulation or 1
    if config.batch_size % (ranks * parts):
        raise InputError(
            f"train.batch_size {config.batch_size} is the global batch: it must be a multiple of "
            f"{ranks} ranks x {parts} parts (train.accumulation)"
        )
    return accelerator


def on_gpu(config: TrainConfig) -> bool:
    """Whether a run by these settings takes a GPU."""
    return resolve_device(config.device).type == "cuda"


@contextmanager
def own_threads(config: TrainConfig) -> Iterator[None]:
    """Within it torch has the threads that the settings ask for; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def used_precision(config: TrainConfig) -> Literal["no", "bf16", "fp16"]:
    """What `auto` is on this machine; any other setting is itself."""
    if config.precision != "auto":
        return config.precision
    if on_gpu(config):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    # Ranks must not choose by a stopwatch each: on the CPU several of them compute in float32.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return "bf16" if alone and _fast_bfloat16() else "no"


def _fast_bfloat16() -> bool:
    return bfloat16_speedup() > SLOW_BFLOAT16


def advice(config: TrainConfig) -> list[str]:
    """Lines for people about what the settings are, and which of them cost time, on this machine."""
    return _advice_on_restarts() + _advice_on_precision(config)


def _advice_on_restarts() -> list[str]:
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if not restarts or os.environ.get(OWN_STORE) == "1":
        return []
    return [f"torchrun --max-restarts {restarts}: set {OWN_STORE}=1 for it, or ranks that begin again may not connect"]


def _advice_on_precision(config: TrainConfig) -> list[str]:
    if config.precision == "auto":
        return [f"train.precision auto: {used_precision(config)} on this machine"]
    if config.precision != "bf16" or on_gpu(config) or _fast_bfloat16():
        return []
    return [
        f"train.precision bf16: a product in bfloat16 takes {1 / bfloat16_speedup():.1f} times as long as in float32 "
        "on this processor; train.precision=no is likely to be faster, auto chooses"
    ]


def check_installed(config: TrainConfig) -> None:
    """InputError for a device, trackers or a compiler that the settings ask for and that are not there."""
    resolve_device(config.device)
    check_trackers(config.trackers or ())
    if config.compile:
        check_compiler("train.compile=true", on_gpu(config))


def check_trackers(names: Sequence[str]) -> None:
    """InputError for a tracker whose package is not installed."""
    for name in names:
        packages = TRACKER_PACKAGES[name]
        if not any(importlib.util.find_spec(package) for package in packages):
            raise InputError(
                f"train.trackers: {name} is not installed; pip install {packages[0]}, or 'channelvq[tracking]'"
            )


def start_trackers(accelerator: Accelerator, resolved: Any, start_step: int) -> None:
    """Begin a run in every tracker, with the recipe as its settings; start_step: steps that it has done already."""
    if accelerator.log_with:
        # What a killed sitting had logged after its checkpoint is logged again: TensorBoard would show both.
        options = {"tensorboard": {"purge_step": start_step + 1}}
        accelerator.init_trackers("channelvq", config=_flat(to_dict(resolved)), init_kwargs=options)


def stop_trackers(accelerator: Accelerator) -> None:
    """Write out what they hold. Not `end_training`, which ends the process group as well."""
    for tracker in accelerator.trackers:
        tracker.finish()


def leave() -> bool:
    """End this process's part in its group of ranks, the last act of a program; whether it was the main one.

    A rank that exits while still connected can abort, or make others abort, and the launcher then calls the run failed.
    """
    state = PartialState()
    state.destroy_process_group()
    return state.is_main_process


def exit_code(stopped_by: signal.Signals) -> int:
    """Of a process whose training a signal has stopped well: 128 + its number, as shells have it.

    Where torchrun would take that for a failure and begin the ranks again, 0: they were told to stop.
    """
    return 0 if _restarts() else 128 + stopped_by


def _restarts() -> int:
    """How often torchrun may still begin the ranks again, this being one of its own."""
    allowed = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    return allowed - int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names of plain values, which is what all trackers take."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each rank holds a part of the weights only (FSDP)."""
    return accelerator.distributed_type == DistributedType.FSDP


def group_of_its_own(accelerator: Accelerator) -> ProcessGroup | None:
    """For what the ranks of a sharded training say to each other beside it, on the CPU; all ranks call it together."""
    if not is_sharded(accelerator):
        return None
    return cast(ProcessGroup, distributed.new_group(backend="gloo", timeout=PATIENCE))


def check_shardable(models: dict[str, nn.Module], optimizers: dict[str, Optimizer]) -> None:
    """InputError for what FSDP cannot train here."""
    if any(not getattr(optimizer, "shardable", True) for optimizer in optimizers.values()):
        raise InputError("FSDP: Muon needs unsharded matrices; set objective.muon_learning_rate=null")
    if len(models) > 1:
        raise InputError(f"FSDP shards one model, this recipe trains {', '.join(models)}: use DDP, they are small")


def prepare(
    accelerator: Accelerator, models: dict[str, nn.Module], optimizers: dict[str, Optimizer]
) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """The models and optimizers on their devices, wrapped for several ranks."""
    if is_sharded(accelerator):  # the optimizer has to be given the shards
        ((name, model),) = models.items()
        wrapped, optimizer = accelerator.prepare(model, optimizers[name])
        return {name: wrapped}, {name: optimizer}
    prepared = {name: accelerator.prepare_model(model) for name, model in models.items()}
    return prepared, {name: accelerator.prepare_optimizer(optimizer) for name, optimizer in optimizers.items()}


def unsharded_copies(accelerator: Accelerator, models: dict[str, nn.Module]) -> dict[str, nn.Module] | None:
    """Of models that are about to be sharded, copies on the CPU of the main process, to evaluate and save."""
    if not is_sharded(accelerator):
        return None
    return copy.deepcopy(models) if accelerator.is_main_process else {}


def gather(accelerator: Accelerator, sharded: dict[str, nn.Module], unsharded: dict[str, nn.Module]) -> None:
    """Bring the copies up to date; all ranks call it together."""
    for name, model in sharded.items():
        state = accelerator.get_state_dict(model)
        if name in unsharded:
            unsharded[name].load_state_dict(cast(dict[str, Tensor], state))


def in_memory_format(model: nn.Module, channels_last: bool | None) -> nn.Module:
    """The model, its convolutions' weights with the channels last where that is asked for."""
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]


def compile_networks(networks: list[nn.Module], backend: str | Callable[..., Any] = "inductor") -> None:
    """By torch.compile, in place: names of weights, checkpoints and final files stay as they are.

    For the shapes of training, of which there are few.
    """
    # Beyond so many shapes dynamo goes on uncompiled with a line in the log; its own limit is 8, and a generator has a
    # few widths in each of three stages.
    torch._dynamo.config.recompile_limit = MOST_SHAPES  # type: ignore[attr-defined]
    # A compiled backward pass may otherwise reuse what the adaptive weight's own pass still needs.
    torch._functorch.config.donated_buffer = False  # type: ignore[attr-defined]
    for network in networks:
        network.compile(backend=backend, dynamic=False)
