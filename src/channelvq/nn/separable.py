"""The linear part of a coder for images of any size: a transform of pixel blocks, then one of each feature's grid.

image (B, 3, H, W) - mean -> blocks of p x p          (B, 3pp, G)     G = (H/p) (W/p) places
-> block (F, 3pp)                                     (B, F, G)       features of a block
-> grid (F, G, G), of each feature its own            (B, F, G)       patterns of a feature over the image
-> the R chosen ones, at their slots                  (B, C, h, w)

A full basis of 256 px has 196,608 numbers a row; here all rows together are F G G + 3pp F.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from channelvq.nn.modes import without_autocast
from channelvq.nn.placement import PlacedTransform


class SeparableMap(PlacedTransform):
    """The transforms, the mean and the places of the coefficients: fitted to data, fixed in training."""

    block: Tensor
    grid: Tensor

    def __init__(
        self, slots: int, latent_shape: tuple[int, int, int], image_size: int, *, block_side: int, features: int
    ) -> None:
        self.block_side = block_side
        places, features = (image_size // block_side) ** 2, min(features, 3 * block_side**2)
        super().__init__(features * places, min(slots, features * places), latent_shape, (3, image_size, image_size))
        self.register_buffer("block", torch.zeros(features, 3 * block_side**2))
        self.register_buffer("grid", torch.zeros(features, places, places))

    @torch.no_grad()
    def place(
        self,
        mean: Float[Tensor, " P"],
        block: Float[Tensor, "F b"],
        grid: Float[Tensor, "F G G"],
        chosen: Int64[Tensor, " n"],
        slots: Int64[Tensor, " n"],
    ) -> None:
        """Take transforms, which of their F G coefficients are kept, and where these are in the flat maps."""
        self.mean.copy_(mean)
        self.block.copy_(block)
        self.grid.copy_(grid)
        self.place_at(chosen, slots)

    def all_coefficients(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B FG"]:
        """All of them, feature by feature."""
        centred = x.to(self.block.dtype) - self.mean.view(self.image_shape)
        features = self.block @ F.pixel_unshuffle(centred, self.block_side).flatten(2)
        return torch.bmm(features.transpose(0, 1), self.grid.transpose(1, 2)).transpose(0, 1).flatten(1)

    def analyse(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Images -> coefficients in their places."""
        with without_autocast(x):
            return self.to_maps(self.all_coefficients(x))

    def synthesise(self, z: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Coefficients in their places -> images."""
        with without_autocast(z):
            features, places, _ = self.grid.shape
            everything = self.from_maps(z).unflatten(1, (features, places))
            patterns = torch.bmm(everything.transpose(0, 1), self.grid)
            blocks = self.block.T @ patterns.transpose(0, 1)
            side = self.image_shape[1] // self.block_side
            centred = F.pixel_shuffle(blocks.unflatten(2, (side, side)), self.block_side)
            return centred + self.mean.view(self.image_shape)
