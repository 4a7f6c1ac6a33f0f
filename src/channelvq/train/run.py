"""A recipe from its name to its result."""

from collections.abc import Sequence
from pathlib import Path

import torch

from channelvq.config import apply_overrides, from_dict, read_recipe
from channelvq.train.engine import Engine
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> TokenizerRecipe:
    """The resolved config of a recipe with dotted overrides; raises InputError that names every mistake."""
    return from_dict(
        TokenizerRecipe, apply_overrides(read_recipe(name_or_path), overrides), where=f"recipe {name_or_path}"
    )


def train(recipe: TokenizerRecipe) -> dict[str, float] | None:
    """Train a recipe; returns the last held-out figures, or None when a signal stopped it."""
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    return Engine(TokenizerTask(recipe), recipe.train, recipe).fit()
