"""The encoder and decoder of a tokenizer, by the kind of its network."""

from typing import Annotated

from pydantic import Discriminator, Tag
from torch import nn

from channelvq.config import kind_or
from channelvq.nn.conv import ConvConfig, ConvDecoder, ConvEncoder
from channelvq.nn.linear import LinearConfig, LinearDecoder, LinearEncoder
from channelvq.nn.vit import ViTConfig, ViTEncoder

NetworkConfig = Annotated[
    Annotated[ConvConfig, Tag("conv")] | Annotated[ViTConfig, Tag("vit")] | Annotated[LinearConfig, Tag("linear")],
    Discriminator(
        kind_or("conv"),
        custom_error_type="network_kind",
        custom_error_message="expected settings whose kind is conv, vit or linear",
    ),
]


def build_encoder(config: NetworkConfig, latent_channels: int, image_size: int) -> nn.Module:
    """(B, 3, H, W) in [-1, 1] -> (B, c, H/f, W/f)."""
    match config:
        case ConvConfig():
            return ConvEncoder(config, latent_channels)
        case ViTConfig():
            return ViTEncoder(config, latent_channels, image_size)
        case LinearConfig():
            return LinearEncoder(config, latent_channels, image_size)


def build_decoder(config: NetworkConfig, latent_channels: int, image_size: int) -> ConvDecoder | LinearDecoder:
    """(B, c, h, w) -> (B, 3, h*f, w*f). A vision transformer has a convolutional decoder."""
    match config:
        case ConvConfig():
            return ConvDecoder(config, latent_channels)
        case ViTConfig():
            return ConvDecoder(config.decoder, latent_channels)
        case LinearConfig():
            return LinearDecoder(config, latent_channels, image_size)
