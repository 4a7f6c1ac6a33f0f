"""The networks of tokenizers: the settings of each kind by its name, which build its encoder and its decoder."""

from abc import ABC, abstractmethod
from typing import Annotated, Protocol

from torch import Tensor, nn

from channelvq.config import of_kind
from channelvq.registry import Registry


class Encoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, c, H/f, W/f)."""

    def start(self) -> None:
        """Once, before a training that does not resume: read what it begins with, where that is not in its settings."""

    def first_maps(self, x: Tensor) -> Tensor:
        """What `forward` gives before any training, to the bit: networks that start at zero may be left out."""
        return self(x)


class Decoder(nn.Module, ABC):
    """(B, c, h, w) -> (B, 3, h*f, w*f), not clamped."""

    @property
    @abstractmethod
    def last_weight(self) -> Tensor:
        """Of the layer that makes the pixels: where losses on the image are balanced."""


class NetworkConfig(Protocol):
    """What the settings of every kind have."""

    @property
    def kind(self) -> str:
        """The name that the kind is registered by."""
        ...

    @property
    def downsampling(self) -> int:
        """f, the ratio of the image's side to the latent map's."""
        ...

    @property
    def downsampling_reason(self) -> str:
        """The settings that f comes from."""
        ...

    def build_encoder(self, latent_channels: int, image_size: int) -> Encoder:
        """For square images of image_size pixels."""
        ...

    def build_decoder(self, latent_channels: int, image_size: int, encoder: Encoder) -> Decoder:
        """For square images of image_size pixels; encoder: of the same settings, where they share weights."""
        ...


def takes_any_size(config: NetworkConfig) -> bool:
    """Whether networks of these settings take more than squares of image_size: what has no `any_size` does not."""
    return bool(getattr(config, "any_size", False))


NETWORKS: Registry[type[NetworkConfig]] = Registry(
    "network",
    {
        "conv": "channelvq.nn.conv:ConvConfig",
        "vit": "channelvq.nn.vit:ViTConfig",
        "linear": "channelvq.nn.linear:LinearConfig",
    },
)
AnyNetworkConfig = Annotated[NetworkConfig, of_kind(NETWORKS, default="conv")]
