"""Checkpoints of a run: written beside and renamed, so that one is either whole or not there; old ones are removed."""

import json
import shutil
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator

from channelvq.errors import InputError


def checkpoints(run_dir: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-????????"))


def save_checkpoint(accelerator: Accelerator, run_dir: Path, step: int, keep: int) -> Path:
    """Write everything that resuming needs as checkpoints/step-XXXXXXXX; all ranks call it together."""
    final = run_dir / "checkpoints" / f"step-{step:08d}"
    partial = final.with_name(f".partial-{final.name}")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    if accelerator.is_main_process:
        state = {"step": step, "threads": torch.get_num_threads(), "ranks": accelerator.num_processes}
        (partial / "progress.json").write_text(json.dumps(state))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in checkpoints(run_dir)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(accelerator: Accelerator, folder: Path) -> int:
    """Restore everything from a checkpoint; returns its step. Warns when the thread or rank count is another one."""
    try:
        state = json.loads((folder / "progress.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"checkpoint {folder}: cannot be read ({error}); remove the folder to use the one before"
        ) from None
    now = {"threads": torch.get_num_threads(), "ranks": accelerator.num_processes}
    for name, value in now.items():
        if state[name] != value:
            warnings.warn(
                f"checkpoint {folder} was written with {state[name]} {name}, now {value}: "
                "training goes on, but not equal to the bit to an uninterrupted run",
                stacklevel=2,
            )
    accelerator.load_state(str(folder))
    return int(state["step"])
