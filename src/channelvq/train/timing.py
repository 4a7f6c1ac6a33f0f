"""How long a recipe takes on this machine: some of its steps, taken and timed."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from channelvq.nn.linear import LinearConfig
from channelvq.tokenizer import CVQConfig
from channelvq.train.car_task import CARRecipe
from channelvq.train.engine import Engine
from channelvq.train.launch import own_threads
from channelvq.train.task import Recipe
from channelvq.train.tokenizer_task import TokenizerRecipe

TIMED = 3
WARM_UP = 1  # the first step allocates, and may compile
FEW_IMAGES = 8
FEW_AT_START = 1024  # images that components and codebook are found from; more take minutes and change no step's time


@dataclass(frozen=True)
class StepTime:
    """seconds: the median of the timed steps. hours: of all steps, without evaluations and checkpoints."""

    seconds: float
    steps: int
    device: str
    threads: int

    @property
    def hours(self) -> float:
        """Of the whole recipe."""
        return self.seconds * self.steps / 3600

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "seconds_a_step": self.seconds, "hours": self.hours, "device": self.device, "threads": self.threads,
            "timed_steps": TIMED,
        }  # fmt: skip


def time_steps(recipe: Recipe) -> StepTime:
    """Take the last steps of a recipe, in which all that it trains takes part, on its data; nothing is kept of them.

    Raises InputError where the recipe cannot begin, as training does: where its data, or the tokenizer that it builds
    on, is not here.
    """
    with own_threads(recipe.train), TemporaryDirectory() as folder:
        return _timed(_shortened(recipe, folder))


def _timed(recipe: Recipe) -> StepTime:
    task = recipe.build()
    engine = Engine(task, recipe.train, recipe)
    task.start()
    batches, seconds = task.batches(0, 0, 1), list[float]()
    for step in range(recipe.train.steps - WARM_UP - TIMED, recipe.train.steps):
        batch, began = next(batches), time.perf_counter()
        engine.step(batch, max(0, step), log=True)  # a logged one waits for the device
        seconds.append(time.perf_counter() - began)
    place = engine.accelerator.device
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    return StepTime(median(seconds[WARM_UP:]), recipe.train.steps, name, torch.get_num_threads())


def _shortened(recipe: Recipe, folder: str) -> Recipe:
    """The same steps with less before them: few images to evaluate on, or to be tokenized."""
    train = replace(recipe.train, output_dir=str(Path(folder) / "run"), resume=False, trackers=None)
    few = {"train": train}
    match recipe:
        case TokenizerRecipe():
            data = replace(recipe.data, validation_images=FEW_IMAGES)
            shown = min(recipe.objective.start_images, FEW_AT_START)
            objective = replace(recipe.objective, start_step=0, start_images=shown)
            return replace(recipe, **few, data=data, objective=objective, model=_begun_from_few(recipe.model))
        case CARRecipe():
            data = replace(recipe.data, validation_images=FEW_IMAGES)
            images = min(recipe.objective.train_images, max(FEW_IMAGES, train.batch_size))
            objective = replace(recipe.objective, train_images=images, lm_steps=0, stage1_steps=0)
            return replace(recipe, **few, data=data, objective=objective)
    return replace(recipe, **few)


def _begun_from_few(model: CVQConfig) -> CVQConfig:
    """The same model, whose network finds its start in few images where it has one."""
    if not isinstance(model.network, LinearConfig):
        return model
    shown = min(model.network.start_images, max(FEW_AT_START, 2 * model.network.components))
    return replace(model, network=replace(model.network, start_images=shown))
