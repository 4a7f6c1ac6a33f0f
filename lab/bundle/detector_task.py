"""Training the detector on scenes of the training split, drawn as it goes: no scene comes twice.

    scene -> perhaps in other colours, restored from a prefix of its tokens, damaged -> network -> losses

It never sees what a generator drew. Some things never come in some of the ten colours in training, so it could learn
that an orange tv must be something else. What a thing in one colour is called is therefore learned where the colours of
the scene are shifted at random, and what the colour is called where they are not.
"""

from collections.abc import Iterator
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from channelvq.config import STRICT
from channelvq.data.drawn import captions
from channelvq.data.drawn.scenes import SceneSource
from channelvq.data.drawn.sprites import COLOURS
from channelvq.data.stream import position_generator, rank_share
from channelvq.errors import InputError
from channelvq.evaluate.geneval.prompts import PromptSet, prompt_set
from channelvq.evaluate.geneval.score import faults, task_scores
from channelvq.images import normalize, to_pil, to_tensor
from channelvq.nn.detector import STRIDE, Detection, Detector, DetectorConfig
from channelvq.nn.modes import evaluating
from channelvq.pictures import restored
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.run import TASKS
from channelvq.train.task import Losses, Recipe, Task
from lab.bundle.degrade import degraded, shift_colours
from lab.bundle.detection_loss import NOTHING, UNSAID, detection_loss

MOST_OBJECTS = 4  # of a scene
FIELDS = 6  # left, top, right, bottom, class, colour
SEED_STRIDE = 10**9  # scenes between those of two seeds
THRESHOLDS = tuple(k / 20 for k in range(2, 19))


@dataclass(frozen=True, config=STRICT)
class DetectionSceneConfig:
    """The scenes that the detector learns from; see `channelvq.data.build.SceneConfig`."""

    sprites: Literal["shapes", "fluent"] = "fluent"
    tasks: tuple[captions.Task, ...] = captions.ALL_TASKS


@dataclass(frozen=True, config=STRICT)
class DetectorRecipe(Recipe):
    """Everything that decides the training of a detector. model.classes and model.colours follow from the data.

    tokenizer: restores a share `restored` of the images from `least_tokens` or more of their tokens (None: no image).
    damaged: share of the images that go through `degrade`. shifted: share of the scenes of
    coloured things with colours shifted at random.
    """

    task: Literal["detector"] = "detector"
    model: DetectorConfig = field(default_factory=DetectorConfig)
    image_size: Annotated[PositiveInt, Field(multiple_of=STRIDE)] = 64
    data: DetectionSceneConfig = field(default_factory=DetectionSceneConfig)
    tokenizer: str | None = "bundled"
    restored: Annotated[float, Field(ge=0, le=1)] = 0.25
    least_tokens: PositiveInt = 24
    damaged: Annotated[float, Field(ge=0, le=1)] = 0.5
    shifted: Annotated[float, Field(ge=0, le=1)] = 0.7

    def build(self) -> "DetectorTask":
        """What the loop trains."""
        return DetectorTask(self)


class DetectorTask(Task[DetectorRecipe]):
    """A network that finds the things of drawn scenes, also in what a tokenizer restored."""

    def __init__(self, recipe: DetectorRecipe) -> None:
        self.recipe = recipe
        if (recipe.train.accumulation or 1) > 1:
            raise InputError(
                f"train.accumulation {recipe.train.accumulation}: the loss counts all things of a batch, which cannot "
                "come in parts; lower train.batch_size"
            )
        data, train = recipe.data, recipe.train
        self.source = SceneSource(
            recipe.image_size, "train", data.sprites, "geneval", data.tasks, length=SEED_STRIDE * 2**31
        )
        self.places = {name: i for i, name in enumerate(self.source.sprites.names)}
        self.colours = {None: len(COLOURS)} | {name: i for i, name in enumerate(COLOURS)}
        config = replace(
            recipe.model, classes=self.source.sprites.names, colours=tuple(COLOURS), image_size=recipe.image_size
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            self.network = Detector(config)
        self.tokenizer = CVQTokenizer.from_pretrained(recipe.tokenizer) if recipe.tokenizer else None
        self.models: dict[str, nn.Module] = {"network": self.network}
        self.networks: list[nn.Module] = [self.network]
        self.optimizers: dict[str, Optimizer] = {
            "network": AdamW(
                self.network.parameters(), train.learning_rate, train.betas, weight_decay=train.weight_decay
            )
        }
        self.threshold = config.threshold

    # Data

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[Tensor]:
        """(b, 3 H W + 4 x 6) numbers: the image in [-1, 1], then four rows of box, class and colour."""
        train = self.recipe.train
        share = rank_share(train.batch_size, rank, world)
        for step in range(start_step, train.steps):
            positions = range(step * train.batch_size + share.start, step * train.batch_size + share.stop)
            images, rows = (torch.stack(column) for column in zip(*map(self._example, positions), strict=True))
            images = self._worse(images, positions, step)
            yield torch.cat([normalize(images).flatten(1), rows.flatten(1)], dim=1)

    def _example(self, position: int) -> tuple[UInt8[Tensor, "3 H W"], Float[Tensor, "4 6"]]:
        """A scene, perhaps in other colours, and what is said of its things."""
        scene = self.source.scene(self.recipe.train.seed * SEED_STRIDE + position)
        generator = position_generator(self.recipe.train.seed + 1, position)
        coloured = any(thing.colour for thing in scene.plan.things) or not self.source.sprites.natural
        shifted = coloured and float(torch.rand((), generator=generator)) < self.recipe.shifted
        image = scene.image
        if shifted:
            image = to_tensor(shift_colours(to_pil(image[None])[0], generator))
        rows = torch.full((MOST_OBJECTS, FIELDS), float(NOTHING))
        for row, thing in zip(rows, scene.objects, strict=False):
            name = self.places[thing.name] if shifted or thing.colour is None else UNSAID
            row[:] = torch.tensor([*thing.box, name, UNSAID if shifted else self.colours[thing.colour]])
        return image, rows

    def _worse(self, images: UInt8[Tensor, "b 3 H W"], positions: range, step: int) -> UInt8[Tensor, "b 3 H W"]:
        """Some of the images restored by the tokenizer, some damaged, by what each position draws."""
        generators = [position_generator(self.recipe.train.seed, p) for p in positions]
        draws = torch.stack([torch.rand(2, generator=generator) for generator in generators])
        if self.tokenizer and (chosen := draws[:, 0] < self.recipe.restored).any():
            images[chosen] = self._restored(images[chosen], step)
        for place in (draws[:, 1] < self.recipe.damaged).nonzero().flatten().tolist():
            images[place] = degraded(images[place][None], [generators[place]])[0]
        return images

    def _restored(self, images: UInt8[Tensor, "b 3 H W"], step: int) -> UInt8[Tensor, "b 3 H W"]:
        """The images from a prefix of their tokens, one length a step."""
        assert self.tokenizer is not None
        most = self.tokenizer.num_tokens
        least = min(self.recipe.least_tokens, most)
        generator = position_generator(self.recipe.train.seed, -1 - step)
        k = int(torch.randint(least, most + 1, (), generator=generator))
        return restored(self.tokenizer, images, k, exact=False)

    # Training

    def losses(self, name: str, models: dict[str, nn.Module], batch: Tensor, step: int, part: int) -> Losses:
        """See `detection_loss`."""
        size = self.recipe.image_size
        x, rows = batch.split([3 * size * size, MOST_OBJECTS * FIELDS], dim=1)
        rows = rows.unflatten(1, (MOST_OBJECTS, FIELDS))
        maps = models[name](x.reshape(-1, 3, size, size))
        return Losses(detection_loss(maps, rows[..., :4], rows[..., 4].long(), rows[..., 5].long()))

    # Evaluation

    @cached_property
    def held_out(self) -> tuple[PromptSet, dict[str, UInt8[Tensor, "n 3 H W"]]]:
        """The validation prompts, and a scene of each, as it is and damaged."""
        prompts = prompt_set("validation", self.recipe.image_size, self.recipe.data.sprites)
        images = prompts.scenes()
        damaged = degraded(images, [position_generator(0, -1 - i) for i in range(len(images))])
        return prompts, {"real": images, "damaged": damaged}

    def evaluate(self, models: dict[str, nn.Module], run_dir: Path, step: int) -> dict[str, float]:
        """The GenEval score of validation scenes, as they are and damaged, at the threshold that is best for both."""
        network, (prompts, images) = cast(Detector, models["network"]), self.held_out
        with evaluating(network):
            detections = {kind: network.detect(pictures, threshold=THRESHOLDS[0]) for kind, pictures in images.items()}
        scores = {t: {kind: _score(prompts, objects, t) for kind, objects in detections.items()} for t in THRESHOLDS}
        self.threshold = max(THRESHOLDS, key=lambda t: sum(scores[t].values()))
        return {**scores[self.threshold], "threshold": self.threshold}

    def save(self, models: dict[str, nn.Module], folder: Path) -> None:
        """config.json, with the threshold of the last evaluation, and model.safetensors."""
        network = cast(Detector, models["network"])
        network.config = replace(network.config, threshold=self.threshold)
        network.save(folder)


def _score(prompts: PromptSet, detections: list[list[Detection]], threshold: float) -> float:
    right = [
        not faults(prompt, [thing for thing in objects if thing.score > threshold])
        for prompt, objects in zip(prompts.prompts, detections, strict=True)
    ]
    return task_scores([plan.tag for plan in prompts.plans], right)["overall"]


TASKS.register("detector", DetectorRecipe)
