"""A recipe from its name to its result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import torch

from channelvq.config import apply_overrides, from_dict, read_recipe
from channelvq.errors import InputError
from channelvq.registry import Registry
from channelvq.train.card import write_card
from channelvq.train.engine import Engine, check_run
from channelvq.train.launch import own_threads
from channelvq.train.signals import StopSignals
from channelvq.train.task import Figures, Recipe

R = TypeVar("R", bound=Recipe)
TASKS: Registry[type[Recipe]] = Registry(
    "task",
    {
        "tokenizer": "channelvq.train.tokenizer_task:TokenizerRecipe",
        "car": "channelvq.train.car_task:CARRecipe",
        "clips": "channelvq.train.clip_task:ClipRecipe",
    },
)


@overload
def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe: ...
@overload
def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = (), *, of: type[R]) -> R: ...
def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = (), *, of: type[Any] | None = None) -> Any:
    """The resolved config of a recipe with dotted overrides; raises InputError that names every mistake.

    of: the only kind of recipe that will do, such as `TokenizerRecipe`.
    """
    data = apply_overrides(read_recipe(name_or_path), overrides)
    task = data.get("task", "tokenizer")
    if not isinstance(task, str) or task not in TASKS:
        raise InputError(f"recipe {name_or_path}: task {task!r} is unknown, the tasks are {', '.join(TASKS.names())}")
    # A file of one's own that holds the mistake could not be shown either.
    listed = f"`cvq show {name_or_path}` lists all" if overrides else ""
    recipe = from_dict(TASKS[task], data, where=f"recipe {name_or_path}", listed=listed)
    if of is not None and not isinstance(recipe, of):
        raise InputError(f"recipe {name_or_path}: expected one with task: {of.task}, this one has task: {task}")
    return recipe


def train(recipe: Recipe, *, command: str | None = None, signals: StopSignals | None = None) -> Figures | None:
    """Train a recipe; returns the last held-out figures, or None when a signal stopped it.

    command: the one that asked for it, for the model card in final/. signals: told of the one that stopped it.
    Of what the process has set nothing counts but the settings: an autocast around the call, or another default dtype
    than float32, is an InputError, and the number of threads is afterwards what it was.
    """
    if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
        # Not switched off within: torch drops the weights that it cast only when the outermost autocast ends, so that
        # a training inside of another would go on with those of its first step.
        raise InputError("train: called within torch.autocast; call it outside, train.precision is what it computes in")
    if (dtype := torch.get_default_dtype()) != torch.float32:
        raise InputError(f"train: torch's default dtype is {dtype}, expected float32; see torch.set_default_dtype")
    check_run(recipe)  # before the task, which may draw and tokenize for minutes
    with own_threads(recipe.train):
        engine = Engine(recipe.build(), recipe.train, recipe, checked=True, signals=signals)
        figures = engine.fit()
        if figures is not None and engine.accelerator.is_main_process:
            write_card(recipe, figures, engine.seconds, command, engine.task.held_out_pictures)
        return figures
