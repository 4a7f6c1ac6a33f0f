"""A small network whose features tell pictures apart the way a viewer would: for losses and distances on 64 px images.

x (B, 3, H, W) in [-1, 1] -> conv -> [blocks, halve]* -> features of every stage -> mean over positions -> (B, E)
"""

from jaxtyping import Float
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.config import STRICT
from channelvq.nn.layers import Downsample, group_norm, levels
from channelvq.pretrained import SavedNetwork


@dataclass(frozen=True, config=STRICT)
class PerceptualConfig:
    """widths: channels of each stage, at full resolution first and halved from stage to stage. embedding: E."""

    widths: tuple[PositiveInt, ...] = (16, 32, 64, 128, 192)
    num_blocks: PositiveInt = 1
    embedding: PositiveInt = 128


class PerceptualNetwork(SavedNetwork):
    """Features of each stage, and one embedding of unit length an image."""

    what, bundled = "perceptual network", "perceptual"
    settings = PerceptualConfig
    config: PerceptualConfig

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.widths[0], config.widths[-1]
        self.stem = nn.Conv2d(3, first, 3, padding=1)
        stages = levels(config.widths, config.num_blocks, Downsample)
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.norm = group_norm(last)
        self.out = nn.Linear(last, config.embedding)

    def features(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Maps of every stage, finest first."""
        maps, h = [], self.stem(x)
        for stage in self.stages:
            h = stage(h)
            maps.append(h)
        return maps

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Embeddings of unit length."""
        last = F.silu(self.norm(self.features(x)[-1]))
        return F.normalize(self.out(last.mean((2, 3))).float(), dim=1)
