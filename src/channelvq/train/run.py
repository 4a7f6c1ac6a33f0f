"""A recipe from its name to its result."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

from channelvq.config import apply_overrides, from_dict, read_recipe
from channelvq.errors import InputError
from channelvq.images import check_target
from channelvq.train.car_task import CARRecipe, CARTask
from channelvq.train.checkpoint import check_run_folder
from channelvq.train.engine import Engine, Task
from channelvq.train.launch import check_installed
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask
from lab.bundle.detector_task import DetectorRecipe, DetectorTask
from lab.bundle.perceptual_task import PerceptualRecipe, PerceptualTask

Recipe = TokenizerRecipe | CARRecipe | PerceptualRecipe | DetectorRecipe
R = TypeVar("R", TokenizerRecipe, CARRecipe, PerceptualRecipe, DetectorRecipe)
KINDS: dict[str, type[Recipe]] = {
    "tokenizer": TokenizerRecipe, "car": CARRecipe, "perceptual": PerceptualRecipe, "detector": DetectorRecipe,
}  # fmt: skip


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The resolved config of a recipe with dotted overrides; raises InputError that names every mistake."""
    data = apply_overrides(read_recipe(name_or_path), overrides)
    task = data.get("task", "tokenizer")
    if not isinstance(task, str) or task not in KINDS:
        raise InputError(f"recipe {name_or_path}: task {task!r} is unknown, the tasks are {', '.join(KINDS)}")
    return from_dict(KINDS[task], data, where=f"recipe {name_or_path}")


def load_tokenizer_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> TokenizerRecipe:
    """As `load_recipe`, for where only a tokenizer's recipe will do."""
    return _of_kind(TokenizerRecipe, load_recipe(name_or_path, overrides), name_or_path)


def load_car_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> CARRecipe:
    """As `load_recipe`, for where only a generator's recipe will do."""
    return _of_kind(CARRecipe, load_recipe(name_or_path, overrides), name_or_path)


def load_perceptual_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> PerceptualRecipe:
    """As `load_recipe`, for where only a perceptual network's recipe will do."""
    return _of_kind(PerceptualRecipe, load_recipe(name_or_path, overrides), name_or_path)


def load_detector_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> DetectorRecipe:
    """As `load_recipe`, for where only a detector's recipe will do."""
    return _of_kind(DetectorRecipe, load_recipe(name_or_path, overrides), name_or_path)


def _of_kind(kind: type[R], recipe: Recipe, name_or_path: str | Path) -> R:
    if not isinstance(recipe, kind):
        wanted = next(task for task, cls in KINDS.items() if cls is kind)
        raise InputError(f"recipe {name_or_path}: expected one with task: {wanted}, this one has task: {recipe.task}")
    return recipe


def train(recipe: Recipe) -> dict[str, float] | None:
    """Train a recipe; returns the last held-out figures, or None when a signal stopped it."""
    # Before the task, which may draw and tokenize for minutes.
    check_target(recipe.train.output_dir, folder=True)
    check_run_folder(Path(recipe.train.output_dir), recipe, recipe.train.resume)
    check_installed(recipe.train)
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    match recipe:
        case TokenizerRecipe():
            task: Task = TokenizerTask(recipe)
        case CARRecipe():
            task = CARTask(recipe)
        case PerceptualRecipe():
            task = PerceptualTask(recipe)
        case DetectorRecipe():
            task = DetectorTask(recipe)
    return Engine(task, recipe.train, recipe).fit()
