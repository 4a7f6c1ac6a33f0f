"""Sizes that a training works at, and how they grow with its steps."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT, ImageSize
from channelvq.tokenizer import CVQConfig

Size = tuple[int, int]  # height, width
Sizes = Annotated[tuple[tuple[ImageSize, ImageSize], ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class StageConfig:
    """from_step: the first step of it. sizes: in turn from there on, as those of the recipe."""

    from_step: PositiveInt
    sizes: Sizes


def all_sizes(sizes: Sequence[Size] | None, growth: Sequence[StageConfig] | None) -> list[Size]:
    """Each size that is trained at, once, in rising order; none where that is the home size alone."""
    grown = (size for stage in growth or () for size in stage.sizes)
    return sorted({*(sizes or ()), *grown})


def shares(sizes: Sequence[Size], growth: Sequence[StageConfig] | None, steps: int) -> dict[Size, float]:
    """By size, the share of the steps that train at it."""
    stages = {0: sizes} | {stage.from_step: stage.sizes for stage in growth or ()}
    found: dict[Size, float] = {}
    for (begun, alike), end in zip(stages.items(), [*list(stages)[1:], steps], strict=True):
        for size in alike:
            found[size] = found.get(size, 0.0) + (end - begun) / len(alike) / steps
    return found


def check_sizes(
    model: CVQConfig, sizes: Sequence[Size] | None, growth: Sequence[StageConfig] | None, steps: int, compiled: bool
) -> None:
    """ValueError for sizes that a model cannot train at, or that come in no order."""
    if sizes is not None and model.resampler is None:
        raise ValueError("sizes: a model of one size cannot train at several; set model.resampler, {} is enough")
    if sizes is not None and compiled:
        raise ValueError("sizes: compiled networks are of one size; set train.compile=false")
    begun = [stage.from_step for stage in growth or ()]
    if begun and sizes is None:
        raise ValueError("growth: give sizes too, those of the first steps, such as [[64, 64]]")
    if begun != sorted(set(begun)) or (begun and begun[-1] >= steps):
        raise ValueError(f"growth: from_step {begun} must rise, and stay below train.steps {steps}")
    for size in all_sizes(sizes, growth):
        if (working := model.working_size(size)) != size:
            raise ValueError(
                f"sizes: {list(size)} must be multiples of {model.network.downsampling}, of at most "
                f"{model.max_pixels} pixels (model.resampler.max_pixels); the nearest is {list(working)}"
            )
