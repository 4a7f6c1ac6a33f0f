"""Nested channel dropout: how many leading channels to keep, as pure functions of an explicit generator.

Paper, nested channel dropout: with probability alpha draw c_keep ~ U{1..c} and set every later channel of z_q to zero
before decoding; otherwise keep all. The first channels then learn global structure, later ones detail, and any prefix
of the tokens decodes.

Three choices make a policy: who shares a draw (`policy`), what is drawn from (`lengths`), and how both alpha and the
shortest prefix move over training (`curriculum`). The paper's is policy "batch", uniform lengths, no curriculum.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from channelvq.config import STRICT

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class CurriculumConfig:
    """Where training begins; from there in a straight line to the settings of `NestedConfig`, reached at `until`.

    alpha: the first probability of a dropout (None: the final one from the start). shortest: the shortest prefix
    allowed at first, as a share of the channels; at the end it is one channel. until: as a share of all steps.
    """

    alpha: Share | None = None
    shortest: Share = 0.0
    until: Annotated[float, Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True, config=STRICT)
class NestedConfig:
    """alpha: probability of a dropout (paper: 0.25 to 0.5; 0 turns it off).

    policy: "batch" draws one c_keep for all of the batch, "image" one for each image. lengths: "uniform" (the meaning
    of None) draws c_keep from 1..c, "powers" from 1, 2, 4, ... and c. curriculum: None keeps all of it fixed.
    """

    alpha: Share = 0.25
    policy: Literal["batch", "image"] = "image"
    lengths: Literal["uniform", "powers"] | None = None
    curriculum: CurriculumConfig | None = None

    @property
    def active(self) -> bool:
        """Whether any step of training may drop a channel."""
        return self.alpha > 0 or (self.curriculum is not None and bool(self.curriculum.alpha))


def alpha_at(config: NestedConfig, progress: float) -> float:
    """Probability of a dropout at a share of training, 0 to 1."""
    curriculum = config.curriculum
    if curriculum is None or curriculum.alpha is None:
        return config.alpha
    done = min(1.0, progress / curriculum.until)
    return (1 - done) * curriculum.alpha + done * config.alpha


def shortest_at(config: NestedConfig, num_channels: int, progress: float) -> int:
    """The shortest prefix that may be drawn at a share of training, in 1..num_channels."""
    curriculum = config.curriculum
    if curriculum is None:
        return 1
    left = 1 - min(1.0, progress / curriculum.until)
    return max(1, round(left * curriculum.shortest * num_channels))


def draw_keep(
    config: NestedConfig, batch: int, num_channels: int, generator: torch.Generator, progress: float
) -> Int64[Tensor, " B"]:
    """Number of leading channels to keep for each image, in 1..num_channels; progress: share of training, 0 to 1."""
    draws = 1 if config.policy == "batch" else batch
    dropped = torch.rand(draws, generator=generator) < alpha_at(config, progress)
    shortest = shortest_at(config, num_channels, progress)
    if config.lengths == "powers":
        powers = [2**i for i in range(num_channels.bit_length()) if shortest <= 2**i < num_channels]
        options = torch.tensor([*powers, num_channels])
        keep = options[torch.randint(len(options), (draws,), generator=generator)]
    else:
        keep = torch.randint(shortest, num_channels + 1, (draws,), generator=generator)
    return torch.where(dropped, keep, num_channels).expand(batch).clone()


def keep_mask(keep: Int64[Tensor, " B"], num_channels: int) -> Bool[Tensor, "B C"]:
    """True for the first keep[i] channels of image i."""
    return torch.arange(num_channels, device=keep.device) < keep[:, None]
