"""Checkpoints of a run: written beside and renamed, so that one is complete or not there; old ones are removed."""

import json
import platform
import shutil
import sys
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from channelvq.config import differences, from_dict, read_recipe, to_dict
from channelvq.errors import InputError, reason
from channelvq.files import make_ordinary
from channelvq.pretrained import read_settings, write_settings
from channelvq.train.config import TrainConfig


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-????????"))


# Settings that a run may change when it goes on; `steps` too: the schedule then follows the new length.
FREE = (
    "output_dir", "resume", "steps", "threads", "device", "data_workers", "accumulation", "compile", "channels_last",
    "trackers",
)  # fmt: skip
FREE_ENDINGS = ("_every", "_checkpoints")


def check_run_folder(run_dir: Path, resolved: Any, resume: bool) -> None:
    """Refuse to start over a run that is there, and to go on with settings that would make it another run."""
    saved = checkpoints(run_dir)
    if saved and not resume:
        raise InputError(
            f"{run_dir} already holds checkpoints up to {saved[-1].name}: "
            "go on with train.resume=true, or choose another train.output_dir"
        )
    if not saved:
        return
    if (run_dir / "config.yaml").is_file():
        _refuse_changes(run_dir, resolved)
    if (done := read_state(saved[-1])["step"]) > resolved.train.steps:
        raise InputError(
            f"{run_dir} has already done {done} steps, train.steps is {resolved.train.steps}: "
            f"give {done} or more, or choose another train.output_dir"
        )


def _refuse_changes(run_dir: Path, resolved: Any) -> None:
    changed = differences(_begun_with(run_dir, resolved), to_dict(resolved))
    free = tuple(f"train.{name}:" for name in FREE)
    other = [line for line in changed if not line.startswith(free) and not line.split(":")[0].endswith(FREE_ENDINGS)]
    if other:
        raise InputError(
            f"{run_dir} was begun with other settings:\n  " + "\n  ".join(other) + "\n"
            "resume with the settings it has, or choose another train.output_dir"
        )


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


def _arithmetic(accelerator: Accelerator, config: TrainConfig) -> dict[str, int]:
    """What another value of gives sums in another order: a run that goes on so is no longer equal to the bit."""
    return {
        "threads": torch.get_num_threads(),
        "ranks": accelerator.num_processes,
        "accumulation": config.accumulation or 1,
        "compile": int(config.compile or False),
        "channels_last": int(config.channels_last or False),
    }


def save_checkpoint(accelerator: Accelerator, run_dir: Path, step: int, config: TrainConfig, seconds: float) -> Path:
    """Write everything that resuming needs as checkpoints/step-00001234; all ranks call it together.

    seconds: that the steps took so far.
    """
    final = run_dir / "checkpoints" / f"step-{step:08d}"
    partial = final.with_name(f".partial-{final.name}")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()  # every rank has written its random states there before it is renamed
    if accelerator.is_main_process:
        state = {"step": step, "seconds": seconds, **_arithmetic(accelerator, config), **_machine(accelerator)}
        (partial / "progress.json").write_text(json.dumps(state))
        make_ordinary(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in checkpoints(run_dir)[: -config.keep_checkpoints]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


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
        state = json.loads((folder / "progress.json").read_text())
        return state | {"step": int(state["step"])}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"checkpoint {folder}: cannot be read ({error}); remove the folder to use the one before"
        ) from None


def load_checkpoint(accelerator: Accelerator, folder: Path, config: TrainConfig) -> int:
    """Restore everything from a checkpoint; returns its step. Warns when sums will be made in another order."""
    before = read_state(folder)
    step = before["step"]
    before = {"accumulation": 1, "compile": 0, "channels_last": 0} | before  # older checkpoints do not tell
    for name, value in _arithmetic(accelerator, config).items():
        if before.get(name) != value:
            warnings.warn(
                f"checkpoint {folder} was written with {before.get(name)} {name}, now {value}: "
                "training goes on, but not equal to the bit to an uninterrupted run",
                stacklevel=2,
            )
    try:
        accelerator.load_state(str(folder))
    except (OSError, ValueError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as error:
        raise InputError(
            f"checkpoint {folder}: does not fit or is damaged ({reason(error)}); "
            "remove the folder to use the one before"
        ) from None
    return step
