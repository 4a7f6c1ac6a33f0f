"""The linear part of a coder for images of any size: a transform of pixel blocks, then one of each feature's grid.

image (B, 3, H, W) - mean -> blocks of p x p          (B, 3pp, G)     G = (H/p) (W/p) places
-> block (F, 3pp)                                     (B, F, G)       features of a block
-> grid (F, G, G), of each feature its own            (B, F, G)       patterns of a feature over the image
-> the R chosen ones, at their slots                  (B, C, h, w)

A full basis of 256 px has 196,608 numbers a row; here all rows together are F G G + 3pp F.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.nn.modes import without_autocast


class SeparableMap(nn.Module):
    """The transforms, the mean and the places of the coefficients: fitted to data, fixed in training."""

    mean: Tensor
    block: Tensor
    grid: Tensor
    chosen: Tensor
    slots: Tensor
    used: Tensor

    def __init__(
        self, components: int, latent_shape: tuple[int, int, int], image_size: int, *, block_side: int, features: int
    ) -> None:
        super().__init__()
        self.latent_shape, self.image_shape = latent_shape, (3, image_size, image_size)
        self.block_side = block_side
        places, features = (image_size // block_side) ** 2, min(features, 3 * block_side**2)
        count = min(components, features * places, math.prod(latent_shape))
        self.register_buffer("mean", torch.zeros(3 * image_size**2))
        self.register_buffer("block", torch.zeros(features, 3 * block_side**2))
        self.register_buffer("grid", torch.zeros(features, places, places))
        self.register_buffer("chosen", torch.arange(count))
        self.register_buffer("slots", torch.arange(count))
        self.register_buffer("used", torch.zeros(count))

    @property
    def placed(self) -> bool:
        """Whether it was fitted to data, or loaded."""
        return bool(self.block.any())

    @torch.no_grad()
    def place(
        self,
        mean: Float[Tensor, " P"],
        block: Float[Tensor, "F b"],
        grid: Float[Tensor, "F G G"],
        chosen: Int64[Tensor, " n"],
        slots: Int64[Tensor, " n"],
    ) -> None:
        """Take transforms, which n <= R of their F G coefficients are kept, and where these are in the flat maps."""
        self.mean.copy_(mean)
        self.block.copy_(block)
        self.grid.copy_(grid)
        # The shapes of a saved model do not depend on its data: what is missing stands for zeros in free places.
        self.chosen.copy_(fill_up(chosen, len(self.chosen), grid.shape[0] * grid.shape[1]))
        self.slots.copy_(fill_up(slots, len(self.slots), math.prod(self.latent_shape)))
        self.used.copy_(torch.arange(len(self.used), device=slots.device) < len(slots))

    def coefficients(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B FG"]:
        """All of them, feature by feature."""
        centred = x.to(self.block.dtype) - self.mean.view(self.image_shape)
        features = self.block @ F.pixel_unshuffle(centred, self.block_side).flatten(2)
        return torch.bmm(features.transpose(0, 1), self.grid.transpose(1, 2)).transpose(0, 1).flatten(1)

    def analyse(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Images -> coefficients in their places."""
        with without_autocast(x):
            kept = self.coefficients(x)[:, self.chosen] * self.used
            maps = kept.new_zeros(len(x), math.prod(self.latent_shape))
            return maps.index_copy(1, self.slots, kept).unflatten(1, self.latent_shape)

    def synthesise(self, z: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Coefficients in their places -> images."""
        with without_autocast(z):
            kept = z.flatten(1).to(self.block.dtype)[:, self.slots] * self.used
            features, places, _ = self.grid.shape
            everything = kept.new_zeros(len(z), features * places).index_copy(1, self.chosen, kept)
            patterns = torch.bmm(everything.unflatten(1, (features, places)).transpose(0, 1), self.grid)
            blocks = self.block.T @ patterns.transpose(0, 1)
            side = self.image_shape[1] // self.block_side
            centred = F.pixel_shuffle(blocks.unflatten(2, (side, side)), self.block_side)
            return centred + self.mean.view(self.image_shape)


def fill_up(indices: Int64[Tensor, " n"], count: int, size: int) -> Int64[Tensor, " count"]:
    """The given indices below `size`, and after them, up to `count` in all, those that are not among them."""
    free = torch.ones(size, dtype=torch.bool, device=indices.device)
    free[indices] = False
    return torch.cat([indices, free.nonzero()[:, 0]])[:count]
