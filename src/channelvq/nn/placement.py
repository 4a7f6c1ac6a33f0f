"""Where the coefficients of a linear transform stand in the feature maps: which token has which of them.

coefficients (B, n) -> the chosen ones, at their slots -> maps (B, C, h, w), zeros elsewhere
maps -> each coefficient is the sum of the slots that hold it

A coefficient may stand in several tokens: for a quantizer that passes on what the earlier ones left of it.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class PlacedTransform(nn.Module):
    """The base of linear transforms whose coefficients are numbers of the feature maps; fixed in training."""

    mean: Tensor
    chosen: Tensor
    slots: Tensor
    used: Tensor

    def __init__(
        self, coefficients: int, slots: int, latent_shape: tuple[int, int, int], image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.coefficients, self.latent_shape, self.image_shape = coefficients, latent_shape, image_shape
        slots = min(slots, math.prod(latent_shape))
        self.register_buffer("mean", torch.zeros(math.prod(image_shape)))
        self.register_buffer("chosen", torch.zeros(slots, dtype=torch.int64))
        self.register_buffer("slots", torch.arange(slots))
        self.register_buffer("used", torch.zeros(slots))

    @property
    def placed(self) -> bool:
        """Whether it was fitted to data, or loaded."""
        return bool(self.used.any())

    def place_at(self, chosen: Int64[Tensor, " n"], slots: Int64[Tensor, " n"]) -> None:
        """Put coefficient chosen[i] into slots[i] of the flat maps (C h w); no slot twice."""
        missing = len(self.slots) - len(slots)
        # The shapes of a saved model do not depend on its data: what is missing stands for zeros in free places.
        self.chosen.copy_(torch.cat([chosen, chosen.new_zeros(missing)]))
        self.slots.copy_(_fill_up(slots, len(self.slots), math.prod(self.latent_shape)))
        self.used.copy_(torch.arange(len(self.used), device=slots.device) < len(slots))

    def numbers(self) -> Int64[Tensor, " CHW"]:
        """Of each place in the flat maps which coefficient it holds; free places have numbers of their own."""
        out = self.coefficients + torch.arange(math.prod(self.latent_shape), device=self.slots.device)
        real = self.used.bool()
        return out.index_copy(0, self.slots[real], self.chosen[real])

    def to_maps(self, coefficients: Float[Tensor, "B n"]) -> Float[Tensor, "B C h w"]:
        """Coefficients -> maps."""
        kept = coefficients[:, self.chosen] * self.used
        maps = kept.new_zeros(kept.shape[0], math.prod(self.latent_shape))
        return maps.index_copy(1, self.slots, kept).unflatten(1, self.latent_shape)

    def from_maps(self, z: Float[Tensor, "B C h w"]) -> Float[Tensor, "B n"]:
        """Maps -> coefficients, in the precision of the transform."""
        kept = z.flatten(1).to(self.mean.dtype)[:, self.slots] * self.used
        return kept.new_zeros(z.shape[0], self.coefficients).index_add(1, self.chosen, kept)


def _fill_up(indices: Int64[Tensor, " n"], count: int, size: int) -> Int64[Tensor, " count"]:
    """The given indices below `size`, and after them, up to `count` in all, those that are not among them."""
    free = torch.ones(size, dtype=torch.bool, device=indices.device)
    free[indices] = False
    return torch.cat([indices, free.nonzero()[:, 0]])[:count]
