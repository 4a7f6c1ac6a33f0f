"""What changes in a group of frames, as C maps, seen from the last maps before the group that a decoder has too.

z (B, g, C, h, w) of g frames, past (B, C, h, w)
-> encode: mean over the frames of (z - past), and what a network adds       u (B, C, h, w)   -> [quantizer] -> q
-> decode: past + q, and what a network adds for each frame                    (B, g, C, h, w)

Both networks start at zero: the start is a working code of what changes on average over the group.
"""

from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from channelvq.nn.layers import AttentionBlock, ResBlock, group_norm


class Motion(nn.Module):
    """Both ways of a group of `frames` frames. width, num_blocks: of each network; attention: between its blocks."""

    def __init__(self, channels: int, frames: int, width: int, num_blocks: int, *, attention: bool) -> None:
        super().__init__()
        self.frames = frames
        self.encoder = _network((frames + 1) * channels, channels, width, num_blocks, attention)
        self.decoder = _network(2 * channels, frames * channels, width, num_blocks, attention)

    def encode(self, z: Float[Tensor, "B g C h w"], past: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """What changes in the group, before the quantizer."""
        change = z - past[:, None]
        return change.mean(1) + self.encoder(torch.cat([change.flatten(1, 2), past], dim=1))

    def decode(self, q: Float[Tensor, "B C h w"], past: Float[Tensor, "B C h w"]) -> Float[Tensor, "B g C h w"]:
        """The maps of the group's frames; of q at zero what the past alone lets expect."""
        more = self.decoder(torch.cat([q, past], dim=1)).unflatten(1, (self.frames, -1))
        return (past + q)[:, None] + more


def _network(inputs: int, outputs: int, width: int, num_blocks: int, attention: bool) -> nn.Sequential:
    blocks = [[ResBlock(width, width), *([AttentionBlock(width)] if attention else [])] for _ in range(num_blocks)]
    last = nn.Conv2d(width, outputs, 3, padding=1)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    first = nn.Conv2d(inputs, width, 3, padding=1)
    return nn.Sequential(first, *chain(*blocks), group_norm(width), nn.SiLU(), last)
