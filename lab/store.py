"""The experiment store: one folder for each resolved recipe, so that a run already there is never trained again."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from channelvq.car.data import tokenizer_digest
from channelvq.car.model import CAR
from channelvq.config import differences, digest
from channelvq.errors import InputError
from channelvq.evaluate.results import as_written, git_revision, make_record, write_json
from channelvq.pretrained import weights_sha256
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import CARRecipe
from channelvq.train.clip_task import ClipRecipe
from channelvq.train.engine import training_seconds
from channelvq.train.run import train
from channelvq.train.task import Recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from channelvq.video import ClipTokenizer
from lab.channel_order import permuted

DEFAULT_STORE = Path("runs/store")


def run_key(recipe: Recipe) -> str:
    """Digest of what decides the result of a run: where it is written and whether it resumes do not."""
    recipe = replace(recipe, train=replace(recipe.train, output_dir="", resume=False, trackers=None))
    if isinstance(recipe, (TokenizerRecipe, ClipRecipe)) and (start := recipe.objective.start_from) is not None:
        weights = tokenizer_digest(CVQTokenizer.from_pretrained(start))  # what has that name may change
        recipe = replace(recipe, objective=replace(recipe.objective, start_from=weights))
    if isinstance(recipe, CARRecipe) and (start := recipe.objective.start_from) is not None:
        weights = weights_sha256(CAR.from_pretrained(start))
        recipe = replace(recipe, objective=replace(recipe.objective, start_from=weights))
    return digest(recipe)


def generator_key(tokenizer: TokenizerRecipe, recipe: CARRecipe) -> str:
    """As `run_key`, of a generator on the tokenizer that another recipe trains."""
    return run_key(replace(recipe, tokenizer=run_key(tokenizer)))


def trained(recipe: TokenizerRecipe, store: Path = DEFAULT_STORE) -> tuple[CVQTokenizer, dict[str, Any]]:
    """The tokenizer of a recipe and {"run", "seconds", "git"}: trained now, resumed, or read from the store."""
    folder, done = _finished(recipe, run_key(recipe), store)
    return CVQTokenizer.from_pretrained(folder / "final"), done


def trained_clips(recipe: ClipRecipe, store: Path = DEFAULT_STORE) -> tuple[ClipTokenizer, dict[str, Any]]:
    """As `trained`, for a tokenizer of clips."""
    folder, done = _finished(recipe, run_key(recipe), store)
    return ClipTokenizer.from_pretrained(folder / "final"), done


def trained_generator(
    tokenizer: TokenizerRecipe, recipe: CARRecipe, store: Path = DEFAULT_STORE
) -> tuple[CAR, dict[str, Any]]:
    """As `trained`, for a generator on the tokenizer of another recipe, which is trained first if it has to be."""
    base, _ = _finished(tokenizer, run_key(tokenizer), store)
    here = replace(recipe, tokenizer=str(base / "final"))
    folder, done = _finished(here, generator_key(tokenizer, recipe), store)
    return CAR.from_pretrained(folder / "final"), done


def saved_generator_key(recipe: CARRecipe) -> str:
    """As `generator_key`, on the tokenizer that the recipe itself names, which is there."""
    digest_of_it = tokenizer_digest(CVQTokenizer.from_pretrained(recipe.tokenizer))  # what has that name may change
    return run_key(replace(recipe, tokenizer=digest_of_it))


def trained_saved_generator(recipe: CARRecipe, store: Path = DEFAULT_STORE) -> tuple[CAR, dict[str, Any]]:
    """As `trained_generator`, on the tokenizer that the recipe itself names."""
    folder, done = _finished(recipe, saved_generator_key(recipe), store)
    return CAR.from_pretrained(folder / "final"), done


def ordered_generator_key(tokenizer: TokenizerRecipe, recipe: CARRecipe, order: str | None) -> str:
    """As `generator_key`, on the tokenizer with its channels in another order, by name; None: as they are."""
    if order is None:
        return generator_key(tokenizer, recipe)
    return run_key(replace(recipe, tokenizer=f"{run_key(tokenizer)}, by {order}"))


def trained_on_order(
    tokenizer: TokenizerRecipe,
    recipe: CARRecipe,
    order: Int64[Tensor, " C"],
    name: str | None,
    store: Path = DEFAULT_STORE,
) -> tuple[CAR, dict[str, Any]]:
    """As `trained_generator`, on the tokenizer with its channels in an order of this name (None: as they are)."""
    if name is None:
        return trained_generator(tokenizer, recipe, store)
    base, _ = trained(tokenizer, store)
    place = store / f"{run_key(tokenizer)}-{name}"
    permuted(base, order).save_pretrained(place)
    key = ordered_generator_key(tokenizer, recipe, name)
    folder, done = _finished(replace(recipe, tokenizer=str(place)), key, store)
    return CAR.from_pretrained(folder / "final"), done


def kept_records(stored: dict[str, Any], path: Path, how: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """By name, the records of a stored result whose run keys are `keys`: of recipes as they are now.

    Raises InputError where they were measured in another way than `how`, the protocol.
    """
    before, now = ({key: p[key] for key in p if key != "git"} for p in (stored["protocol"], as_written(how)))
    if changed := differences(before, now):
        raise InputError(f"{path} was measured in another way ({'; '.join(changed)}); measure all again with --rerun")
    # A record that stays was measured by the revision that it says, or else the result.
    measured = {"git": stored["protocol"].get("git")}
    kept = [row for row in stored["records"] if keys.get(row["name"]) == row["run"]]
    return {row["name"]: row | {"protocol": measured | row.get("protocol", {})} for row in kept}


def _finished(recipe: Recipe, key: str, store: Path) -> tuple[Path, dict[str, Any]]:
    folder = store / key
    done = folder / "done.json"
    if not done.is_file():
        settings = replace(recipe.train, output_dir=str(folder), resume=True)
        if train(replace(recipe, train=settings)) is None:
            raise InputError(f"experiment run {key} was stopped; the same command goes on from its last checkpoint")
        write_json(
            done, {"run": key, "seconds": training_seconds(folder, recipe.train.batch_size), "git": git_revision()}
        )
    return folder, json.loads(done.read_text())


def record(recipe: TokenizerRecipe, run: dict[str, Any], data: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """One entry of a result file's "records", of a recipe's tokenizer; run: as `trained` returns it."""
    facts = {"seed": recipe.train.seed, "steps": recipe.train.steps, **run}
    entry = make_record(recipe.model, data=data, split="held-out", metrics=metrics, **facts)
    return entry | {"alpha": recipe.nested.alpha}
