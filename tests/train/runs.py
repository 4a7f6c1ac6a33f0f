"""Runs of a few steps, stopped and gone on with, for the tests of the training loop."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from channelvq.train.engine import Engine
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

TINY = (
    "model.image_size=32", "model.latent_channels=8", "model.network.base_channels=8", "model.network.stem=2",
    "model.quantizer.codebook_size=32", "data.validation_images=16", "objective.start_images=32",
    "train.batch_size=4", "train.log_every=1", "train.device=cpu", "train.ema=0.9",
)  # fmt: skip


def recipe(folder: Path, *overrides: str) -> TokenizerRecipe:
    return load_recipe("small/smoke", [*TINY, f"train.output_dir={folder}", *overrides], of=TokenizerRecipe)


def fit(config: TokenizerRecipe) -> dict[str, float] | None:
    return Engine(TokenizerTask(config), config.train, config).fit()


class StopAt(TokenizerTask):
    """Dies in the middle of a run, as a machine does."""

    at = 0

    def losses(self, name, models, batch, step, rank):  # type: ignore[no-untyped-def]
        if step == self.at:
            raise KeyboardInterrupt
        return super().losses(name, models, batch, step, rank)


def everything(folder: Path) -> dict[str, object]:
    """Weights, moving average, optimizer, schedule and random states of the newest checkpoint."""
    return everything_in(sorted((folder / "checkpoints").glob("step-*"))[-1])


def everything_in(checkpoint: Path) -> dict[str, object]:
    """The same of one that is given."""
    found: dict[str, object] = {}
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".safetensors":
            found[path.name] = load_file(path)
        elif path.suffix == ".bin":
            found[path.name] = torch.load(path, weights_only=True)
        elif path.name == "schedules.json":
            found[path.name] = json.loads(path.read_text())
    return found


def assert_equal(a: object, b: object, where: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert isinstance(b, list | tuple)
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{i}")
    elif hasattr(a, "tolist"):  # numpy's random state
        assert a.tolist() == b.tolist(), where  # type: ignore[attr-defined]
    else:
        assert a == b, where


def resumed(config: TokenizerRecipe, **train: object) -> TokenizerRecipe:
    return replace(config, train=replace(config.train, resume=True, **train))
