"""The axis of quantization is a reshape: quantizers see (B, K, D) only, K tokens of D numbers.

channel   (B, C, h, w) -> (B, C, h*w)   one token for each channel map: CVQ
patch     (B, C, h, w) -> (B, h*w, C)   one token for each position: classic VQ
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Axis = Literal["channel", "patch"]


def to_vectors(z: Float[Tensor, "B C h w"], axis: Axis) -> Float[Tensor, "B K D"]:
    """Feature map (B, C, h, w) as K vectors of D numbers an image."""
    vectors = z.flatten(2)
    return vectors if axis == "channel" else vectors.transpose(1, 2)


def from_vectors(vectors: Float[Tensor, "B K D"], axis: Axis, size: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """The inverse of `to_vectors` for a map of `size` (h, w)."""
    maps = vectors if axis == "channel" else vectors.transpose(1, 2)
    return maps.unflatten(2, size)
