"""Checkpoints of a run: written beside and renamed, so that one is complete or not there; old ones are removed.

    model.safetensors, model_1.safetensors ...   the models           optimizer.bin, optimizer_1.bin ...   by Accelerate
    average-NAME.safetensors   moving averages   schedules.json       random-states-RANK.safetensors
    progress.json              step, seconds, machine                 SHA256SUMS   of all of these

FSDP's shards are folders with a file of each rank. Nothing that is read can execute anything: what is a pickle, the
optimizers' state, is read by torch with weights_only.
"""

import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import Unpickler, UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR

from channelvq.config import differences, from_dict, read_recipe, to_dict
from channelvq.errors import InputError, reason
from channelvq.files import SUMS, damaged, make_ordinary, write_sums
from channelvq.pretrained import read_settings, read_weights, write_settings, write_weights
from channelvq.train.averages import MovingAverage
from channelvq.train.config import TrainConfig
from channelvq.train.random_states import random_states, set_random_states

# What saving and loading raise for a full disk, a damaged file and a file of another shape.
FAULTS = (OSError, ValueError, RuntimeError, EOFError, UnpicklingError, SafetensorError, LookupError, TypeError)
PARTIAL = ".partial-"
# All that a list of FSDP's shards is made of, beside types of numbers.
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
class RunState:
    """What a checkpoint keeps of a run beside that which Accelerate saves, by the names of the optimizers."""

    schedulers: dict[str, LambdaLR]
    averages: dict[str, MovingAverage]


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-????????"))


# Settings that a run may change when it goes on; `steps` too: the schedule then follows the new length.
FREE = (
    "output_dir", "resume", "steps", "threads", "device", "data_workers", "accumulation", "compile", "channels_last",
    "trackers", "license",
)  # fmt: skip
OF_THE_CALL = ("train.output_dir:", "train.resume:")  # of which nobody need be told
FREE_ENDINGS = ("_every", "_checkpoints")


def check_run_folder(run_dir: Path, resolved: Any, resume: bool) -> list[str]:
    """Refuse to start over a run that is there, and to go on with settings that would make it another run.

    Returns those that it had otherwise in its last sitting and may have, as "train.steps: 60 -> 30".
    """
    saved = checkpoints(run_dir)
    if saved and not resume:
        raise InputError(
            f"{run_dir} already holds checkpoints up to {saved[-1].name}: "
            "go on with train.resume=true, or choose another train.output_dir"
        )
    if not saved:
        return []
    changed = _allowed_changes(run_dir, resolved) if (run_dir / "config.yaml").is_file() else []
    if (done := read_state(saved[-1])["step"]) > resolved.train.steps:
        raise InputError(
            f"{run_dir} has already done {done} steps, train.steps is {resolved.train.steps}: "
            f"give {done} or more, or choose another train.output_dir"
        )
    return [line for line in changed if not line.startswith(OF_THE_CALL)]


def _allowed_changes(run_dir: Path, resolved: Any) -> list[str]:
    changed = differences(_begun_with(run_dir, resolved), to_dict(resolved))
    free = tuple(f"train.{name}:" for name in FREE)
    other = [line for line in changed if not line.startswith(free) and not line.split(":")[0].endswith(FREE_ENDINGS)]
    if other:
        raise InputError(
            f"{run_dir} was begun with other settings:\n  " + "\n  ".join(other) + "\n"
            "resume with the settings it has, or choose another train.output_dir"
        )
    return changed


def check_inputs(run_dir: Path, inputs: dict[str, str]) -> None:
    """Refuse to go on where what a run reads beside its settings has changed since it began.

    inputs: digests by what they are of. Kept as inputs.json; runs of before it was written are let pass.
    """
    path = run_dir / "inputs.json"
    if checkpoints(run_dir) and path.is_file():
        changed = [name for name, value in read_settings(path).items() if inputs.get(name) != value]
        if changed:
            raise InputError(
                f"{run_dir} was begun with {' and '.join(changed)} of other content than now; "
                "put back what it was begun with, or choose another train.output_dir"
            )
    write_settings(path, inputs)


def _begun_with(run_dir: Path, resolved: Any) -> dict[str, Any]:
    """The settings of a run, with the defaults of those that did not exist when it began."""
    path = run_dir / "config.yaml"
    try:
        stored = read_recipe(path)
    except InputError as error:
        raise InputError(f"{path} is damaged ({error}); remove it to go on with the settings that are given") from None
    try:
        return to_dict(from_dict(type(resolved), stored))
    except InputError:  # of another kind, or with settings that are gone: all of them are named
        return stored


def _arithmetic(accelerator: Accelerator, config: TrainConfig) -> dict[str, int | str]:
    """What another value of gives other sums: a run that goes on so is no longer equal to the bit."""
    return {
        "threads": torch.get_num_threads(),
        "ranks": accelerator.num_processes,
        "accumulation": config.accumulation or 1,
        "compile": int(config.compile or False),
        "channels_last": int(config.channels_last or False),
        "precision": accelerator.mixed_precision,
    }


def save_checkpoint(
    accelerator: Accelerator, run_dir: Path, step: int, config: TrainConfig, seconds: float, kept: RunState
) -> Path:
    """Write everything that resuming needs as checkpoints/step-00001234; all ranks call it together.

    seconds: that the steps took so far. Raises InputError that names the file that cannot be written; the checkpoints
    of before are as they were then.
    """
    final = run_dir / "checkpoints" / f"step-{step:08d}"
    partial = final.with_name(f"{PARTIAL}{final.name}")
    main = accelerator.is_main_process
    try:
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        _write(accelerator, partial, kept)
        accelerator.wait_for_everyone()  # every rank has written its random states there before it is renamed
        if main:
            state = {"step": step, "seconds": seconds, **_arithmetic(accelerator, config), **_machine(accelerator)}
            write_settings(partial / "progress.json", state)
            make_ordinary(partial)
            write_sums(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own for it
        raise _unwritten(run_dir, partial, error) from None
    if main:
        for old in checkpoints(run_dir)[: -config.keep_checkpoints]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def _write(accelerator: Accelerator, folder: Path, kept: RunState) -> None:
    accelerator.save_state(str(folder))
    # What Accelerate writes of random states is a pickle, and it goes on in silence where that is missing.
    (folder / f"random_states_{accelerator.process_index}.pkl").unlink()
    write_weights(_random_file(accelerator, folder), random_states())
    if accelerator.is_main_process:
        write_settings(folder / "schedules.json", {name: _plain(kept.schedulers[name]) for name in kept.schedulers})
    for name, average in kept.averages.items():
        average.save(folder, name, accelerator.is_main_process)


def _plain(scheduler: LambdaLR) -> dict[str, Any]:
    return {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"}  # functions


def _unwritten(run_dir: Path, partial: Path, error: Exception) -> InputError:
    """Which file could not be written, and what there is to go on from; what is there of it is removed."""
    # Neither torch nor safetensors tells which; the weights are the first.
    files = [path for path in partial.rglob("*") if path.is_file()]
    last = max(files, key=lambda path: path.stat().st_mtime_ns, default=partial / "model.safetensors")
    name = Path(getattr(error, "filename", None) or last).name.removeprefix(PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    saved = checkpoints(run_dir)
    good = f"{saved[-1]} is whole, go on from it with train.resume=true" if saved else "there is none of before"
    return InputError(f"checkpoint {partial.name.removeprefix(PARTIAL)}: cannot write {name} ({reason(error)}); {good}")


def sweep_partial(run_dir: Path) -> None:
    """Remove what a killed process had written of a checkpoint."""
    for left in (run_dir / "checkpoints").glob(f"{PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)


def _machine(accelerator: Accelerator) -> dict[str, Any]:
    """Its name, and the peak of memory so far in bytes: of the GPU, else of the process."""
    if accelerator.device.type == "cuda":
        name, peak = torch.cuda.get_device_name(accelerator.device), torch.cuda.max_memory_allocated()
    elif sys.platform == "win32":
        name, peak = platform.machine(), None
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        name, peak = platform.machine(), unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"device": name, "gpu": accelerator.device.type == "cuda", "peak_memory": peak}


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint tells of itself: step, seconds, threads, ranks, ...; raises InputError for a damaged one."""
    try:
        state = read_settings(folder / "progress.json")
        return state | {"step": int(state["step"])}
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _unusable(folder, f"cannot be read ({error})") from None


def load_checkpoint(accelerator: Accelerator, folder: Path, config: TrainConfig, kept: RunState) -> int:
    """Restore everything from a checkpoint; returns its step. Warns when sums will be made in another order.

    Raises InputError, with nothing restored, where a part is missing or not as it was written.
    """
    _check_whole(accelerator, folder, kept)
    before = read_state(folder)
    for name, value in _arithmetic(accelerator, config).items():
        if before.get(name, value) != value:  # one of before that was not yet written down says nothing
            warnings.warn(
                f"checkpoint {folder} was written with {before.get(name)} {name}, now {value}: "
                "training goes on, but not equal to the bit to an uninterrupted run",
                stacklevel=2,
            )
    try:
        with weights_only():
            accelerator.load_state(str(folder), load_kwargs={"weights_only": True})
            for name, average in kept.averages.items():
                average.load(folder, name)
        schedules = read_settings(folder / "schedules.json")
        for name, scheduler in kept.schedulers.items():
            scheduler.load_state_dict(schedules[name] | {"lr_lambdas": [None] * len(scheduler.lr_lambdas)})
            _set_rates(scheduler)
        set_random_states(read_weights(_random_file(accelerator, folder)))
    except FAULTS as error:
        raise _unusable(folder, f"does not fit or is damaged ({reason(error)})") from None
    return before["step"]


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


def _set_rates(scheduler: LambdaLR) -> None:
    """The rates of the schedule as it is now: those that were saved are of the one before, if `steps` was changed."""
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    scheduler._last_lr = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate


def _random_file(accelerator: Accelerator, folder: Path) -> Path:
    return folder / f"random-states-{accelerator.process_index}.safetensors"


def _check_whole(accelerator: Accelerator, folder: Path, kept: RunState) -> None:
    """InputError where a part is missing or has changed, or a list of FSDP's shards would execute something."""
    if not (folder / SUMS).is_file():
        raise _unusable(folder, f"it has no {SUMS}: incomplete, or of a version before checkpoints had digests")
    parts = [_random_file(accelerator, folder), folder / "schedules.json"]
    parts += [folder / average.file(name) for name, average in kept.averages.items()]
    if missing := [part.relative_to(folder).as_posix() for part in parts if not part.is_file()]:
        raise _unusable(folder, f"it lacks {', '.join(missing)}")
    # By one process: reading all of it in each would take as long as there are ranks.
    if accelerator.is_main_process and (wrong := damaged(folder)):
        raise _unusable(folder, f"missing, or not as it was written: {', '.join(wrong)}")
    for path in folder.rglob(".metadata"):
        with path.open("rb") as file:
            try:
                _ShardList(file).load()
            except FAULTS as error:
                raise _unusable(folder, f"{path.name} is damaged ({reason(error)})") from None


class _ShardList(Unpickler):
    """Of FSDP's sharded checkpoints torch reads the list of shards as a pickle: here it has been looked at before."""

    def find_class(self, module: str, name: str) -> Any:
        # By exact names: in a dotted one ("torch", "os.system") every module that another imports can be reached.
        number = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if number or name in SHARD_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise UnpicklingError(f"it names {module}.{name}")


def _unusable(folder: Path, why: str) -> InputError:
    return InputError(f"checkpoint {folder}: {why}; remove the folder to use the one before")
