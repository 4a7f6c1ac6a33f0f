"""Settings that every training run has, whatever its task."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT, differences, to_dict
from channelvq.errors import InputError

Tracker = Literal["tensorboard", "trackio", "wandb"]
LICENSE = r"^[A-Za-z0-9][-A-Za-z0-9.+ ]*$"  # an identifier of SPDX or of the hub, such as mit or cc-by-4.0
Beta = Annotated[float, Field(ge=0, lt=1)]


# YAML reads a bare `no` as false.
Precision = Annotated[
    Literal["no", "bf16", "fp16", "auto"], BeforeValidator(lambda given: "no" if given is False else given)
]


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How long, how fast, where to.

    steps: updates of the weights. seed: decides the first weights, the order of the images and all that is drawn.
    output_dir: the run's folder. betas: of AdamW's moving averages. weight_decay: of AdamW. warmup_steps: in which the
    learning rate rises to its peak. final_lr_ratio: the learning rate of the last step over the peak. clip_norm: the
    largest norm of the gradient, longer ones are scaled down to it; null: none. log_every: steps between two records of
    training figures. evaluate_every: steps between two evaluations on held-out images. checkpoint_every: steps between
    two checkpoints. checkpoint_async: a checkpoint is copied at its step and written while training goes on, which
    takes the memory of the copy. keep_checkpoints: how many of the newest are kept. threads: of the CPU; 0: as many as
    torch takes. data_workers: processes that read images; 0: the training process does. batch_size: images a step over
    all ranks. learning_rate: peak, after `warmup_steps`, then a cosine down to `final_lr_ratio` of it. ema: decay of
    the moving average of the weights that is evaluated and saved (0: none). device: auto is a CUDA GPU where there is
    one, else the CPU; which GPU, CUDA_VISIBLE_DEVICES says. precision: of the networks; quantizers always work in
    float32.
    auto: bf16 where the device is not slower by it, else no (float32); the run says which.
    resume: go on from the newest checkpoint. accumulation: parts that a rank's share of the batch is worked through in,
    one after the other, before the step; it saves memory and leaves the result as it is, but for rounding. compile: the
    networks by torch.compile. channels_last: their memory format. trackers: what else the figures of metrics.jsonl go
    to.
    license: of the weights, for their card; null: the card says that none is given.
    """

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 32
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    output_dir: str = "runs/run"
    resume: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "no"
    learning_rate: PositiveFloat = 1e-4
    betas: tuple[Beta, Beta] = (0.5, 0.9)
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup_steps: NonNegativeInt = 100
    final_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    clip_norm: PositiveFloat | None = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    log_every: PositiveInt = 20
    evaluate_every: PositiveInt = 500
    checkpoint_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    threads: NonNegativeInt = 0
    data_workers: NonNegativeInt = 0
    # None is off for all of these: a setting that is None leaves the digests of stored runs as they are.
    accumulation: PositiveInt | None = None
    compile: bool | None = None
    channels_last: bool | None = None
    checkpoint_async: bool | None = None
    trackers: tuple[Tracker, ...] | None = None
    license: Annotated[str, Field(pattern=LICENSE)] | None = None


def check_start(source: str, given: Any, wanted: Any) -> None:
    """InputError unless the model of the weights to start from, a config, is that of the recipe."""
    if changed := differences(to_dict(given), to_dict(wanted)):
        raise InputError(
            f"objective.start_from {source!r} is another model than the recipe's, set `model` as it is there; "
            f"there -> here: {'; '.join(changed)}"
        )
