"""Large matrices stored as a byte a number: each row as whole numbers of -127..127 times a scale of its own.

    W (R, ...) float -> W int8, and W.row_scale (R,) float32 beside it;  W[i] = row_scale[i] * int8[i]

The error of a number is at most half of its row's scale, the largest number of the row over 254. For storing alone:
what is computed with is float32.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from channelvq.errors import InputError

SCALE = ".row_scale"
MOST = 127


def to_byte_rows(matrix: Float[Tensor, "R ..."]) -> tuple[Int8[Tensor, "R ..."], Float32[Tensor, " R"]]:
    """(whole numbers, the scale of each row); a row of zeros has the scale 1."""
    rows = matrix.detach().float().flatten(1)
    scale = rows.abs().amax(1) / MOST
    # Rounded up to 16 bits, so that 127 times it is exact, and storing what was stored before changes nothing.
    scale = ((scale.view(torch.int32) + 0xFF) & ~0xFF).view(torch.float32)
    scale = torch.where(scale > 0, scale, 1.0)
    return (rows / scale[:, None]).round().clamp(-MOST, MOST).to(torch.int8).view(matrix.shape), scale


def with_byte_rows(state: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """A state dict with these matrices as `to_byte_rows` has them."""
    stored = dict(state)
    for name in names:
        stored[name], stored[name + SCALE] = to_byte_rows(state[name])
    return stored


def without_byte_rows(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of what `with_byte_rows` gave, in float32; on the meta device too, where it takes no memory.

    Raises InputError for scales without their rows.
    """
    state = {name: tensor for name, tensor in stored.items() if not name.endswith(SCALE)}
    for name in stored.keys() - state.keys():
        scale, rows = stored[name], state.get(name.removesuffix(SCALE))
        if rows is None or rows.dtype != torch.int8 or not rows.ndim or scale.shape != rows.shape[:1]:
            raise InputError(f"{name} is not the scales of a matrix of bytes; write or download the file again")
        state[name.removesuffix(SCALE)] = rows.float() * scale.float().view(-1, *[1] * (rows.ndim - 1))
    return state
