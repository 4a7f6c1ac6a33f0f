"""Measures of clips: what each frame is like, and whether what moves does so as in the original."""

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from channelvq.errors import InputError
from channelvq.evaluate.metrics import psnr


def clip_psnr(clips: UInt8[Tensor, "n T 3 h w"], references: UInt8[Tensor, "n T 3 h w"]) -> Float64[Tensor, " n"]:
    """PSNR of each clip in dB: the mean over its frames. InputError for anything but two uint8 clips of one shape."""
    _check_pair(clips, references)
    return psnr(clips.flatten(0, 1), references.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)


def flicker(clips: UInt8[Tensor, "n T 3 h w"], references: UInt8[Tensor, "n T 3 h w"]) -> Float64[Tensor, " n"]:
    """Error of the differences between successive frames: their root mean square, in units of 0..255.

    0 where every pixel changes as it does in the original, however wrong its level is; an error that stands still does
    not count, one that comes and goes counts twice. Of one frame: nan.
    """
    _check_pair(clips, references)
    error = clips.to(torch.float64) - references.to(torch.float64)
    return error.diff(dim=1).square().mean(dim=(1, 2, 3, 4)).sqrt()


def _check_pair(clips: Tensor, references: Tensor) -> None:
    for given in (clips, references):
        if given.ndim != 5 or given.dtype != torch.uint8 or given.shape != clips.shape or given.shape[2] != 3:
            raise InputError(
                f"clips: expected two uint8 tensors (n, T, 3, H, W) of one shape, got {clips.dtype} "
                f"{tuple(clips.shape)} and {references.dtype} {tuple(references.shape)}"
            )
