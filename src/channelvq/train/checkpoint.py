"""Checkpoints of a run: written beside and renamed, so that one is complete or not there; old ones are removed.

    models, optimizers, moving averages   as whole tensors (plain.py), or in shards, a file of each rank (sharded.py)
    schedules.json      random-states-RANK.safetensors      scaler.pt (fp16)
    progress.json       step, seconds, machine              SHA256SUMS   of all of these

Either form is gone on from by one process or several, sharded or not. Nothing that is read can execute anything: what
is a pickle, such as the optimizers' state, is read by torch with weights_only.
"""

import platform
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.distributed import ProcessGroup
from torch.optim.lr_scheduler import LambdaLR

from channelvq.config import differences, from_dict, read_recipe, to_dict
from channelvq.errors import InputError, reason
from channelvq.files import SUMS, damaged, make_ordinary, replaced_folder, write_sums
from channelvq.pretrained import read_settings, read_weights, write_settings, write_weights
from channelvq.train import plain, sharded
from channelvq.train.averages import Average, MovingAverage, ShardedAverage
from channelvq.train.background import Background
from channelvq.train.config import TrainConfig
from channelvq.train.launch import is_sharded
from channelvq.train.plain import Plain
from channelvq.train.random_states import random_states, set_random_states

# What saving and loading raise for a full disk, a damaged file and a file of another shape.
FAULTS = (OSError, ValueError, RuntimeError, EOFError, UnpicklingError, SafetensorError, LookupError, TypeError)
# What writing does: torch and safetensors have errors of their own for a full disk.
WRITING = (OSError, RuntimeError, SafetensorError)
PARTIAL = ".partial-"
SCALER = "scaler.pt"


@dataclass(frozen=True)
class RunState:
    """What a checkpoint keeps of a run beside models and optimizers, by the names of the optimizers.

    group: of the ranks, for what is written in shards beside the training.
    """

    schedulers: dict[str, LambdaLR]
    averages: dict[str, MovingAverage]
    group: ProcessGroup | None = None


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-????????"))


# Settings that a run may change when it goes on; `steps` too: the schedule then follows the new length.
FREE = (
    "output_dir", "resume", "steps", "threads", "device", "data_workers", "accumulation", "compile", "channels_last",
    "checkpoint_async", "trackers", "license",
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
    accelerator: Accelerator,
    run_dir: Path,
    step: int,
    config: TrainConfig,
    seconds: float,
    kept: RunState,
    background: Background,
) -> None:
    """Write everything that resuming needs as checkpoints/step-00001234; all ranks call it together.

    seconds: that the steps took so far. background: where the large parts, which are copied here, are written with
    `checkpoint_async`; then its next call raises what this one otherwise does: InputError that names the file that
    cannot be written; the checkpoints of before are as they were then.
    """
    background.wait()
    final = run_dir / "checkpoints" / f"step-{step:08d}"
    partial = final.with_name(f"{PARTIAL}{final.name}")
    main = accelerator.is_main_process
    try:
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        _write_small(accelerator, partial, kept)
        if main:
            state = {"step": step, "seconds": seconds, **_arithmetic(accelerator, config), **_machine(accelerator)}
            write_settings(partial / "progress.json", state)
        large = _large(accelerator, kept)
        if not config.checkpoint_async:
            large.write(partial)
        accelerator.wait_for_everyone()  # every rank has written its part there before it is renamed
    except WRITING as error:
        raise _unwritten(run_dir, partial, error) from None
    if not config.checkpoint_async:
        if main:
            _complete(run_dir, partial, final, config)
        accelerator.wait_for_everyone()
    elif main or is_sharded(accelerator):
        copied = large.staged()

        def work() -> None:
            try:
                copied.write(partial)
            except WRITING as error:
                raise _unwritten(run_dir, partial, error) from None
            if main:
                _complete(run_dir, partial, final, config)

        background.start(work)


def _complete(run_dir: Path, partial: Path, final: Path, config: TrainConfig) -> None:
    """From here on it is there; more than `keep_checkpoints` are not kept."""
    try:
        make_ordinary(partial)
        write_sums(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except WRITING as error:
        raise _unwritten(run_dir, partial, error) from None
    for old in checkpoints(run_dir)[: -config.keep_checkpoints]:
        shutil.rmtree(old)


def _write_small(accelerator: Accelerator, folder: Path, kept: RunState) -> None:
    """What is written at its step: in it training would change it, and it takes no time."""
    write_weights(_random_file(accelerator.process_index, folder), random_states())
    if accelerator.is_main_process:
        write_settings(folder / "schedules.json", {name: _plain(kept.schedulers[name]) for name in kept.schedulers})
        if accelerator.scaler is not None:
            torch.save(accelerator.scaler.state_dict(), folder / SCALER)


def _large(accelerator: Accelerator, kept: RunState) -> Plain | sharded.Shards:
    if is_sharded(accelerator):
        return sharded.Shards.of(accelerator, _in_shards(kept), kept.group)
    return Plain.of(accelerator, _whole(kept))


def _whole(kept: RunState) -> dict[str, Average]:
    return cast(dict[str, Average], kept.averages)


def _in_shards(kept: RunState) -> dict[str, ShardedAverage]:
    return cast(dict[str, ShardedAverage], kept.averages)


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
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(torch.load(folder / SCALER, weights_only=True))
        with sharded.weights_only():
            _load_large(accelerator, folder, kept)
        schedules = read_settings(folder / "schedules.json")
        for name, scheduler in kept.schedulers.items():
            scheduler.load_state_dict(schedules[name] | {"lr_lambdas": [None] * len(scheduler.lr_lambdas)})
            _set_rates(scheduler)
        # Ranks that were not there then begin as another one, as all of them do at step 1.
        ranks = int(before.get("ranks") or accelerator.num_processes)
        set_random_states(read_weights(_random_file(accelerator.process_index % ranks, folder)))
    except FAULTS as error:
        raise _unusable(folder, f"does not fit or is damaged ({reason(error)})") from None
    return before["step"]


def _set_rates(scheduler: LambdaLR) -> None:
    """The rates of the schedule as it is now: those that were saved are of the one before, if `steps` was changed."""
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    scheduler._last_lr = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate


def _load_large(accelerator: Accelerator, folder: Path, kept: RunState) -> None:
    """Either form of a checkpoint into either way of training."""
    in_shards = sharded.are_there(folder)
    if is_sharded(accelerator):
        (sharded.load if in_shards else sharded.spread)(accelerator, folder, _in_shards(kept))
    elif not in_shards:
        models, optimizers = len(accelerator._models), len(accelerator._optimizers)
        Plain.read(folder, models, optimizers, kept.averages).give(accelerator, _whole(kept))
    else:
        sharded.gathered(folder).give(accelerator, _whole(kept))


def to_plain(checkpoint: str | Path, output: str | Path) -> None:
    """A checkpoint of shards, as FSDP trains, as one of whole tensors: what one process writes at the same step.

    By one process, without the model. Raises InputError where a part is missing or not as it was written.
    """
    folder = Path(checkpoint)
    _check_sound(folder)
    try:
        whole = sharded.gathered(folder)
    except FAULTS as error:
        raise _unusable(folder, f"is not one of shards, or damaged ({reason(error)})") from None
    with replaced_folder(Path(output)) as new:
        whole.write(new)
        for path in folder.iterdir():
            if path.is_file() and path.name != SUMS:
                shutil.copy(path, new)
        write_sums(new)


def _random_file(rank: int, folder: Path) -> Path:
    return folder / f"random-states-{rank}.safetensors"


def _check_whole(accelerator: Accelerator, folder: Path, kept: RunState) -> None:
    """InputError where a part is missing or has changed, or a list of shards would execute something."""
    if not (folder / SUMS).is_file():
        raise _unusable(folder, f"it has no {SUMS}: incomplete, or of a version before checkpoints had digests")
    average_file = sharded.average_list if sharded.are_there(folder) else plain.average_file
    parts = [_random_file(0, folder).name, "schedules.json", *(average_file(name) for name in kept.averages)]
    if missing := [part for part in parts if not (folder / part).is_file()]:
        raise _unusable(folder, f"it lacks {', '.join(missing)}")
    _check_sound(folder, accelerator.is_main_process)


def _check_sound(folder: Path, digests: bool = True) -> None:
    """digests: by one process, for reading all of it in each would take as long as there are ranks."""
    if digests and (wrong := damaged(folder)):
        raise _unusable(folder, f"missing, or not as it was written: {', '.join(wrong)}")
    try:
        sharded.check_lists(folder)
    except FAULTS as error:
        raise _unusable(folder, f"{sharded.LIST} is damaged ({reason(error)})") from None


def _unusable(folder: Path, why: str) -> InputError:
    return InputError(f"checkpoint {folder}: {why}; remove the folder to use the one before")
