"""`python -m lab bench run`: what a run has reached on its machine, by its newest checkpoint and the recipe's plan."""

from pathlib import Path
from typing import Any

from channelvq.errors import InputError
from channelvq.evaluate.tables import TextTable
from channelvq.train.checkpoint import checkpoints, read_state
from channelvq.train.plan import Machine, plan
from channelvq.train.run import load_recipe


def reached(run_dir: Path, peak: float) -> dict[str, Any]:
    """Speed, memory and model FLOPs utilisation of a run so far, over all its sittings, evaluations not counted.

    peak: TFLOP/s of one of its GPUs, which MFU is a share of: the FLOPs that the plan counts, nothing recomputed, over
    what the machine could have done in the time. None on a CPU, whose peak nobody knows. peak_memory: GiB of the first
    GPU, or of the process on a CPU. Raises InputError where there is no checkpoint.
    """
    stored = checkpoints(run_dir)
    if not stored:
        raise InputError(f"{run_dir} holds no checkpoint; expected the folder of a run (train.output_dir)")
    state = read_state(stored[-1])
    seconds, ranks = _positive(stored[-1], state, "seconds"), int(_positive(stored[-1], state, "ranks"))
    has_memory = state.get("peak_memory") is not None
    recipe = load_recipe(run_dir / "config.yaml")
    full = plan(str(run_dir), recipe, Machine(gpus=ranks, peak=peak, mfu=1.0))
    images = state["step"] * recipe.train.batch_size
    speed = images / seconds
    on_gpu = bool(state.get("gpu"))
    return {
        "step": state["step"],
        "steps": recipe.train.steps,
        "images": images,
        "seconds": seconds,
        "images_per_second": speed,
        "peak_memory": _positive(stored[-1], state, "peak_memory") / 2**30 if has_memory else None,
        "device": state.get("device"),
        "ranks": ranks,
        "flops_per_image": full.training_flops,
        "peak": peak if on_gpu else None,
        "mfu": speed * full.training_flops / (ranks * peak * 1e12) if on_gpu else None,
    }


def _positive(checkpoint: Path, state: dict[str, Any], name: str) -> float:
    """A figure of a checkpoint; InputError for one that is not there or cannot be."""
    value = state.get(name)
    if not isinstance(value, int | float) or not 0 < value < float("inf") or (name == "ranks" and value % 1):
        raise InputError(
            f"checkpoint {checkpoint}: its progress.json says {name}: {value!r}, expected a number above 0; "
            "it is damaged or of an older version"
        )
    return value


def shown(figures: dict[str, Any]) -> TextTable:
    """What `reached` gives, for people."""
    rows = [
        ["steps", f"{figures['step']:,} of {figures['steps']:,}"],
        ["images a second", f"{figures['images_per_second']:,.1f}"],
        ["time of the steps", f"{figures['seconds'] / 3600:,.2f} h"],
    ]
    if figures["peak_memory"] is not None:
        rows.append(["peak of memory", f"{figures['peak_memory']:,.2f} GiB"])
    rows.append(["training FLOPs an image", f"{figures['flops_per_image'] / 1e9:,.1f} GFLOP"])
    if figures["mfu"] is not None:
        rows.append([f"MFU, of {figures['peak']:g} TFLOP/s", f"{figures['mfu']:.1%}"])
    return TextTable(("what", "how much"), rows, f"{figures['ranks']} x {figures['device']}")
