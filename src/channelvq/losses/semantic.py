"""Semantic loss: the quantized latent must tell what a frozen vision encoder sees in the image.

z_q (B, c, h, w) -> head -> predicted (B, E, h, w)        x (B, 3, H, W) -> SigLIP, frozen -> target (B, E, h', w')
loss = mean over images and positions of 1 - cos(predicted, target)

The paper says of its ViT version only "with a semantic loss (weight 1)". This is the field's way to give codes meaning
(BEiT v2, arXiv 2208.06366; VA-VAE, arXiv 2501.01423); the choices are in docs/decisions/0010-vit-and-semantic-loss.md.
"""

from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.config import STRICT
from channelvq.nn.siglip import load_siglip, siglip_features

if TYPE_CHECKING:
    from transformers import SiglipVisionConfig, SiglipVisionModel


@dataclass(frozen=True, config=STRICT)
class SemanticConfig:
    """teacher: the SigLIP checkpoint whose features are the target, all its layers: a folder or a hub id."""

    teacher: str
    weight: PositiveFloat = 1.0

    def build(self, latent_channels: int) -> "Meaning":
        """The frozen teacher and a fresh head; raises InputError where the teacher's checkpoint cannot be had."""
        teacher = SemanticTeacher(load_siglip(self.teacher))
        return Meaning(self, teacher, SemanticHead(latent_channels, teacher.num_features))


class SemanticTeacher(nn.Module):
    """A whole SigLIP vision transformer, which never trains."""

    def __init__(self, siglip: nn.Module) -> None:
        super().__init__()
        self.siglip = siglip.eval().requires_grad_(False)

    @property
    def num_features(self) -> int:
        """E."""
        return int(self._config.hidden_size)

    @property
    def _config(self) -> "SiglipVisionConfig":
        return cast("SiglipVisionModel", self.siglip).config

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E h w"]:
        """Images in [-1, 1] -> features of every patch, of images resized to the size that it was trained on."""
        size = int(self._config.image_size)  # type: ignore[arg-type]
        if x.shape[2:] != (size, size):
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        return siglip_features(cast("SiglipVisionModel", self.siglip), x)


class SemanticHead(nn.Module):
    """The small map from the latent to the teacher's features, position by position; trained, and then left behind."""

    def __init__(self, latent_channels: int, num_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(latent_channels, num_features, 1), nn.GELU(), nn.Conv2d(num_features, num_features, 1)
        )

    def forward(self, z_q: Float[Tensor, "B C h w"]) -> Float[Tensor, "B E h w"]:
        """(B, C, h, w) -> (B, E, h, w)."""
        return self.layers(z_q)


def semantic_loss(predicted: Float[Tensor, "B E h w"], target: Float[Tensor, "B E h2 w2"]) -> Float[Tensor, ""]:
    """Mean of 1 - cos over images and positions, 0 to 2; a target on another grid is resampled to the latent's."""
    target = target.float()
    if target.shape[2:] != predicted.shape[2:]:
        target = F.interpolate(target, size=predicted.shape[2:], mode="bilinear", antialias=True, align_corners=False)
    return 1 - F.cosine_similarity(predicted.float(), target, dim=1).mean()


class Meaning:
    """A teacher and a head of one training."""

    def __init__(self, config: SemanticConfig, teacher: SemanticTeacher, head: SemanticHead) -> None:
        self.config, self.teacher, self.head = config, teacher, head

    def loss(self, head: nn.Module, z_q: Float[Tensor, "B C h w"], x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
        """The weighted term; head: ours, possibly wrapped."""
        return self.config.weight * semantic_loss(head(z_q), self.teacher.to(x.device)(x))
