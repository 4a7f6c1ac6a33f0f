"""Pixels between uint8 [0, 255] and float [-1, 1]: the range rule of the library."""

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped, UInt8
from PIL import Image
from torch import Tensor

from channelvq.errors import InputError

# A resampled float image overshoots its range by a rounding error; more than this is another convention.
RANGE_TOLERANCE = 1e-3


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """The pixels of an RGB image, uint8 in [0, 255]; another mode is an InputError (`load_image` converts)."""
    if image.mode != "RGB":
        raise InputError(f"image of mode {image.mode}: expected RGB; convert it with channelvq.images.load_image")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalize(x: UInt8[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """uint8 in [0, 255] -> float32 in [-1, 1]."""
    return x.to(torch.float32) / 127.5 - 1


def to_uint8(x: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Float in [-1, 1] -> uint8 by rounding, values outside clamped: the exact inverse of `normalize`.

    Raises InputError if a value is NaN or infinite.
    """
    if not bool(torch.isfinite(x).all()):
        raise InputError(f"image tensor of shape {tuple(x.shape)} has NaN or infinite values: they have no pixel value")
    return ((x.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pil(x: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """A batch, float in [-1, 1] or uint8, as a list of RGB images."""
    if x.ndim != 4 or x.shape[1] != 3:
        raise InputError(f"image tensor of shape {tuple(x.shape)}: expected (B, 3, H, W)")
    pixels = x if x.dtype == torch.uint8 else to_uint8(x)
    return [Image.fromarray(p) for p in pixels.detach().cpu().permute(0, 2, 3, 1).contiguous().numpy()]


def check_unit(x: Shaped[Tensor, "..."]) -> Float32[Tensor, "b 3 h w"]:
    """An image (3, H, W) or a batch (B, 3, H, W), uint8 or float in [-1, 1], as a float32 batch in [-1, 1].

    Raises InputError for another shape or type, and for values outside [-1, 1] (by more than 1e-3) or not finite.
    """
    x = x[None] if x.ndim == 3 else x
    name = f"image tensor of shape {tuple(x.shape)}, {x.dtype}"
    if x.ndim != 4 or x.shape[1] != 3 or x.numel() == 0:
        raise InputError(f"{name}: expected (3, H, W) or (B, 3, H, W), none of them 0; repeat gray over 3 channels")
    if x.dtype == torch.uint8:
        return normalize(x)
    if not x.dtype.is_floating_point:
        raise InputError(f"{name}: expected float in [-1, 1] or uint8")
    check_range(x, name, RANGE_TOLERANCE)
    return x.to(torch.float32).clamp(-1, 1)


def check_one(x: Shaped[Tensor, "..."]) -> Float32[Tensor, "1 3 h w"]:
    """As `check_unit`, for one image: (3, H, W) or (1, 3, H, W)."""
    if x.ndim == 4 and x.shape[0] != 1:
        raise InputError(f"tensor of shape {tuple(x.shape)}: expected one image, (3, H, W) or (1, 3, H, W)")
    return check_unit(x)


def check_range(x: Float[Tensor, "..."], name: str, tolerance: float) -> None:
    """InputError for values outside [-1, 1] by more than `tolerance`, or not finite. Waits for the device once."""
    low, high = torch.stack(x.detach().aminmax()).tolist()
    if not (low >= -1 - tolerance and high <= 1 + tolerance):  # written so that NaN fails as well
        raise InputError(
            f"{name}: values from {low:g} to {high:g}, expected [-1, 1]; give uint8 to channelvq.images.normalize, or "
            "scale u in [0, 255] as u / 127.5 - 1"
        )
