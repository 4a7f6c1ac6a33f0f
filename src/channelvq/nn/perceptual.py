"""A small network whose features tell pictures apart the way a viewer would: for losses and distances on 64 px images.

x (B, 3, H, W) in [-1, 1] -> conv -> [blocks, halve]* -> features of every stage -> mean over positions -> (B, E)
"""

from pathlib import Path

from jaxtyping import Float
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.config import STRICT
from channelvq.nn.layers import Downsample, ResBlock, group_norm
from channelvq.pretrained import find_folder, load_module, save_network


@dataclass(frozen=True, config=STRICT)
class PerceptualConfig:
    """widths: channels of each stage, at full resolution first and halved from stage to stage. embedding: E."""

    widths: tuple[PositiveInt, ...] = (16, 32, 64, 128, 192)
    num_blocks: PositiveInt = 1
    embedding: PositiveInt = 128


class PerceptualNetwork(nn.Module):
    """Features of each stage, and one embedding of unit length an image."""

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        self.config = config
        previous = config.widths[0]
        self.stem = nn.Conv2d(3, previous, 3, padding=1)
        self.stages = nn.ModuleList()
        for depth, width in enumerate(config.widths):
            stage: list[nn.Module] = [Downsample(previous)] if depth else []
            for _ in range(config.num_blocks):
                stage.append(ResBlock(previous, width))
                previous = width
            self.stages.append(nn.Sequential(*stage))
        self.norm = group_norm(previous)
        self.out = nn.Linear(previous, config.embedding)

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

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        save_network(self, self.config, folder)

    @classmethod
    def load(cls, source: str | Path) -> "PerceptualNetwork":
        """From "bundled", a folder that `save` wrote or a hub repository, to be used as it is: no gradients of its own.

        Raises InputError where there is none, or its files are damaged or do not fit together.
        """
        folder = find_folder("perceptual network", source, "perceptual")
        return load_module(cls, PerceptualConfig, folder).requires_grad_(False)
