"""What is trained: the part of a training that is not the same for all, as the loop (train/engine.py) sees it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass as data_class
from dataclasses import field
from pathlib import Path
from typing import Generic, TypeVar, cast

from huggingface_hub import PyTorchModelHubMixin
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from channelvq.config import STRICT
from channelvq.data.stream import Positions, training_batches
from channelvq.train.config import TrainConfig

Figures = dict[str, float]


@dataclass(frozen=True, config=STRICT)
class Recipe(ABC):
    """What all recipes have: the name that their task is registered by, and the settings of the loop."""

    task: str = ""
    train: TrainConfig = field(default_factory=TrainConfig)

    @abstractmethod
    def build(self) -> "Task":
        """What the loop trains."""


@data_class(frozen=True)
class Losses:
    """Of one optimizer on one part of a batch.

    terms: named and weighted means over the part, whose sum is minimised; none of them, no update. figures: what else
    there is to log, called only at the steps that are logged, since reading a number waits for the device.
    """

    terms: dict[str, Tensor]
    figures: Callable[[], Figures] = dict


R = TypeVar("R", bound=Recipe)


class Task(ABC, Generic[R]):
    """A recipe's models and what they learn from, such as the pictures of `training`.

    models and optimizers: by name; each optimizer makes one update a step, in this order, of the model of its name and
    of helpers, models without an optimizer of their own, whose parameters it holds. networks: what torch.compile may
    compile. idle_parameters: whether some steps leave out parameters, which distributed training has to look for.
    held_out_pictures: different ones among the held-out images: of a small set they come again.

    A rank's share of the global batch comes in one part, or in `train.accumulation` equal ones. `part` is the number of
    a part among those of all ranks, in the order of the global batch: what is drawn for an image depends on its place
    in the global batch alone. The loop makes of the parts' means the mean over the global batch.
    """

    recipe: R
    training: Positions
    models: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    networks: list[nn.Module]
    idle_parameters: bool = False
    held_out_pictures: int | None = None

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[Tensor]:
        """Batches of this rank from a step on; the data position is the step, so nothing else needs restoring."""
        train = self.recipe.train
        return training_batches(
            self.training, train.batch_size, start_step, train.steps, rank=rank, world=world, workers=train.data_workers
        )

    @abstractmethod
    def losses(self, name: str, models: dict[str, nn.Module], batch: Tensor, step: int, part: int) -> Losses:
        """Those of optimizer `name` on this part of the batch; models: prepared, possibly wrapped."""

    @abstractmethod
    def evaluate(self, models: dict[str, nn.Module], run_dir: Path, step: int) -> Figures:
        """Figures on held-out data; may write pictures under run_dir/samples."""

    def save(self, models: dict[str, nn.Module], folder: Path) -> None:
        """Write what `from_pretrained` of the first model loads: config.json, model.safetensors and README.md."""
        cast(PyTorchModelHubMixin, models[next(iter(self.models))]).save_pretrained(folder)

    def start(self) -> None:
        """Once, before the first step of a run that does not resume."""
        return

    def survey(self, parts: Sequence[Tensor], step: int, first: int) -> AbstractContextManager[None]:
        """Around the losses of a step whose batch comes in several parts: here they are all, from number `first` on."""
        return nullcontext()

    def alarms(self, figures: Figures) -> list[str]:
        """Lines for people about what an evaluation's figures show to go wrong, each once a run, with its remedy."""
        return []


def tokenizer_optimizer(
    models: Iterable[nn.Module], quantizers: Iterable[nn.Module], train: TrainConfig, codebook_lr_ratio: float
) -> AdamW:
    """Of all weights of the models; quantizers: those of them that learn at another rate and do not decay."""
    codebooks = [parameter for quantizer in quantizers for parameter in quantizer.parameters()]
    held = {id(parameter) for parameter in codebooks}
    network = [parameter for model in models for parameter in model.parameters() if id(parameter) not in held]
    groups = [
        {"params": network, "weight_decay": train.weight_decay},
        # Decay would pull unused codewords to zero, where the first winner takes all.
        {"params": codebooks, "weight_decay": 0.0, "lr": train.learning_rate * codebook_lr_ratio},
    ]
    return AdamW(groups, lr=train.learning_rate, betas=train.betas)
