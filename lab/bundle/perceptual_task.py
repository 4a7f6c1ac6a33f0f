"""Training the perceptual network: the same emoji of two art sets belong together, all others of the batch do not.

Labels are split as everywhere (data/split.py), so the test of it is on emoji that it never saw in any art set.
"""

from collections.abc import Iterator
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Float, UInt8
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from channelvq.config import STRICT
from channelvq.data.fetched.emoji import EmojiSource, Style
from channelvq.data.stream import position_generator, rank_share
from channelvq.errors import InputError
from channelvq.images import normalize
from channelvq.nn.modes import evaluating
from channelvq.nn.perceptual import PerceptualConfig, PerceptualNetwork
from channelvq.train.run import TASKS
from channelvq.train.task import Losses, Recipe, Task
from lab.bundle.cross_style import STYLES, cross_style_accuracy, style_pictures


@dataclass(frozen=True, config=STRICT)
class PerceptualRecipe(Recipe):
    """Everything that decides the training of a perceptual network; train.batch_size counts pairs."""

    task: Literal["perceptual"] = "perceptual"
    model: PerceptualConfig = field(default_factory=PerceptualConfig)
    image_size: PositiveInt = 64
    temperature: PositiveFloat = 0.1

    def build(self) -> "PerceptualTask":
        """What the loop trains."""
        return PerceptualTask(self)


class PerceptualTask(Task[PerceptualRecipe]):
    """A network that tells emoji of two art sets apart by what they show."""

    def __init__(self, recipe: PerceptualRecipe) -> None:
        self.recipe = recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.train.seed)
            self.network = PerceptualNetwork(recipe.model)
        self.models: dict[str, nn.Module] = {"network": self.network}
        self.networks: list[nn.Module] = [self.network]
        train = recipe.train
        if (train.accumulation or 1) > 1:
            raise InputError(
                f"train.accumulation {train.accumulation}: the contrastive loss compares all labels of a batch, "
                "which cannot come in parts; lower train.batch_size"
            )
        self.optimizers: dict[str, Optimizer] = {
            "network": AdamW(
                self.network.parameters(), train.learning_rate, train.betas, weight_decay=train.weight_decay
            )
        }
        self.sources = [EmojiSource(style, recipe.image_size, "train", flip=True) for style in STYLES]
        self.places = [{s.base: i for i, s in enumerate(source.sprites)} for source in self.sources]
        # Labels that at least two art sets draw.
        drawn = [base for bases in self.places for base in bases]
        self.labels = sorted({base for base in drawn if drawn.count(base) > 1})
        if len(self.labels) < train.batch_size:
            raise InputError(f"train.batch_size {train.batch_size}: there are only {len(self.labels)} labels")

    @cached_property
    def held_out(self) -> tuple[dict[Style, UInt8[Tensor, "400 3 H W"]], int]:
        """Pictures of the validation labels in every art set."""
        return style_pictures("validation", self.recipe.image_size)

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[Tensor]:
        """(b, 2, 3, H, W) uint8: each row is one label in two art sets, and no label comes twice in a batch."""
        train = self.recipe.train
        share = rank_share(train.batch_size, rank, world)
        for step in range(start_step, train.steps):
            order = torch.randperm(len(self.labels), generator=position_generator(train.seed, -1 - step)).tolist()
            places = range(share.start, share.stop)
            yield torch.stack([self._pair(order[p], step * train.batch_size + p) for p in places])

    def _pair(self, label: int, position: int) -> UInt8[Tensor, "2 3 H W"]:
        generator, base = position_generator(self.recipe.train.seed, position), self.labels[label]
        able = [i for i, bases in enumerate(self.places) if base in bases]
        two = torch.randperm(len(able), generator=generator)[:2].tolist()
        return torch.stack([self.sources[able[i]].sample(self.places[able[i]][base], generator).image for i in two])

    def losses(self, name: str, models: dict[str, nn.Module], batch: Tensor, step: int, part: int) -> Losses:
        """InfoNCE between the two art sets; matched: share of rows that find their own pair in the batch."""
        a, b = models[name](normalize(batch.flatten(0, 1))).unflatten(0, batch.shape[:2]).unbind(1)
        loss, matched = contrastive_loss(a, b, self.recipe.temperature)
        return Losses({"contrastive": loss}, lambda: {"matched": float(matched)})

    def evaluate(self, models: dict[str, nn.Module], run_dir: Path, step: int) -> dict[str, float]:
        """The cross-style test on validation labels."""
        network = models["network"]
        device = next(network.parameters()).device
        pictures, queries = self.held_out
        with evaluating(network):
            accuracy = cross_style_accuracy(lambda x: network(x.to(device)), pictures, queries)
        return {"cross_style": accuracy["mean"]}

    def save(self, models: dict[str, nn.Module], folder: Path) -> None:
        """config.json and model.safetensors."""
        cast(PerceptualNetwork, models["network"]).save(folder)


def contrastive_loss(
    a: Float[Tensor, "B E"], b: Float[Tensor, "B E"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Symmetric InfoNCE (van den Oord et al. 2018, eq. 4), and the share of rows whose nearest is their own pair."""
    logits = a @ b.T / temperature
    target = torch.arange(len(a), device=a.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.argmax(1) == target).float().mean()


TASKS.register("perceptual", PerceptualRecipe)
