"""The axis of quantization is a reshape: quantizers see (B, K, D) only, K tokens of D numbers.

channel   (B, C, h, w) -> (B, C, h*w)   one token for each channel map: CVQ
patch     (B, C, h, w) -> (B, h*w, C)   one token for each position: classic VQ
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from channelvq.errors import InputError

Axis = Literal["channel", "patch"]


def to_vectors(z: Float[Tensor, "B C h w"], axis: Axis) -> Float[Tensor, "B K D"]:
    """Feature map (B, C, h, w) as K vectors of D numbers an image."""
    vectors = z.flatten(2)
    return vectors if axis == "channel" else vectors.transpose(1, 2)


def from_vectors(vectors: Float[Tensor, "B K D"], axis: Axis, size: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """The inverse of `to_vectors` for a map of `size` (h, w)."""
    maps = vectors if axis == "channel" else vectors.transpose(1, 2)
    return maps.unflatten(2, size)


def check_axis(axis: object, where: str) -> None:
    """InputError, beginning with `where`, for an axis that there is not."""
    if axis not in ("channel", "patch"):
        raise InputError(f"{where}: axis is 'channel' or 'patch', got {axis!r}")


def checked_vectors(z: Float[Tensor, "B ..."], axis: Axis, dim: int, where: str) -> Float[Tensor, "B K D"]:
    """The tokens of a feature map (B, C, h, w), of a video's (B, C, T, h, w), whose places are those of all frames, or
    of a sequence (B, K, D), whose vectors are the tokens on any axis.

    Raises InputError, beginning with `where`, for anything else and for tokens that are not of `dim` numbers.
    """
    if not isinstance(z, Tensor) or z.ndim not in (3, 4, 5) or 0 in z.shape:
        given = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise InputError(
            f"{where}: expected a feature map (B, C, h, w), that of a video (B, C, T, h, w) or a sequence (B, K, D), "
            f"none of them 0, got {given}"
        )
    if not z.is_floating_point():
        raise InputError(f"{where}: expected a feature map of floats, got {z.dtype}; convert it with .float()")
    vectors = z if z.ndim == 3 else to_vectors(_as_map(z), axis)
    if vectors.shape[2] != dim:
        what = f"of the sequence {tuple(z.shape)}" if z.ndim == 3 else f"on the {axis} axis of {tuple(z.shape)}"
        hint = "; a feature map is (B, C, h, w)" if z.ndim == 3 else ""
        raise InputError(f"{where}: a token {what} has {vectors.shape[2]} numbers, the codewords have {dim}{hint}")
    return vectors


def shaped_like(vectors: Float[Tensor, "B K D"], z: Float[Tensor, "B ..."], axis: Axis) -> Float[Tensor, "B ..."]:
    """The tokens in the shape that they came in: the inverse of `checked_vectors`."""
    if z.ndim == 3:
        return vectors
    shape = _as_map(z).shape
    return from_vectors(vectors, axis, (shape[2], shape[3])).reshape(z.shape)


def _as_map(z: Float[Tensor, "B C ..."]) -> Float[Tensor, "B C h w"]:
    """A video's map as one of T rows: the order of the places is what counts."""
    return z.flatten(3) if z.ndim == 5 else z
