"""Nested channel dropout: how many leading channels to keep, as pure functions of an explicit generator.

Paper, nested channel dropout: with probability alpha draw c_keep ~ U{1..c} and set every later channel of z_q to zero
before decoding; otherwise keep all. The first channels then learn global structure, later ones detail, and any prefix
of the tokens decodes.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from channelvq.config import STRICT


@dataclass(frozen=True, config=STRICT)
class NestedConfig:
    """alpha: probability of a dropout (paper: 0.25 to 0.5; 0 turns it off).

    policy: "batch" draws one c_keep for the whole batch, "image" one for each image.
    """

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.25
    policy: Literal["batch", "image"] = "image"


def draw_keep(config: NestedConfig, batch: int, num_channels: int, generator: torch.Generator) -> Int64[Tensor, " B"]:
    """Number of leading channels to keep for each image, in 1..num_channels."""
    draws = 1 if config.policy == "batch" else batch
    dropped = torch.rand(draws, generator=generator) < config.alpha
    keep = torch.randint(1, num_channels + 1, (draws,), generator=generator)
    return torch.where(dropped, keep, num_channels).expand(batch).clone()


def keep_mask(keep: Int64[Tensor, " B"], num_channels: int) -> Bool[Tensor, "B C"]:
    """True for the first keep[i] channels of image i."""
    return torch.arange(num_channels, device=keep.device) < keep[:, None]
