"""The paper's second encoder: the first n layers of a SigLIP vision transformer, projected to the latent channels.

image (B, 3, H, W) -> patches of f x f -> n layers -> norm -> 1x1 convolution -> (B, c, H/f, W/f)
"""

from dataclasses import field
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.config import STRICT
from channelvq.errors import InputError
from channelvq.nn.conv import ConvConfig, ConvDecoder
from channelvq.nn.networks import Encoder
from channelvq.nn.siglip import build_siglip, load_siglip, siglip_features, siglip_settings

INSIDE = "vision_model."  # before all names of the transformer in some versions of transformers; in our files never
POSITIONS = "embeddings.position_embedding.weight"


@dataclass(frozen=True, config=STRICT)
class ViTConfig:
    """The shape of the encoder, and the convolutional decoder beside it (docs/decisions/0010).

    hidden_size: width of a layer. intermediate_size: width of its feed-forward part. num_heads: of its attention.
    patch_size: f. num_layers: n, the first layers of `weights`. weights: the SigLIP checkpoint, a folder or a hub id,
    that training starts from (`ViTEncoder.load_weights`); None starts fresh. Building the network does not read it, so
    a saved tokenizer needs its own files alone. decoder: its downsampling must be f too.
    """

    kind: Literal["vit"] = "vit"
    patch_size: PositiveInt = 16
    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_heads: PositiveInt = 12
    num_layers: PositiveInt = 12
    weights: str | None = None
    decoder: ConvConfig = field(default_factory=ConvConfig)

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}")
        if self.decoder.downsampling != self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} must be the decoder's downsampling {self.decoder.downsampling} "
                f"({self.decoder.downsampling_reason})"
            )

    @property
    def downsampling(self) -> int:
        """f, the ratio of the image's side to the latent map's."""
        return self.patch_size

    @property
    def downsampling_reason(self) -> str:
        """The settings that it comes from."""
        return f"patch_size {self.patch_size}"

    @property
    def shape(self) -> dict[str, int]:
        """What a checkpoint must agree on, in the words of transformers."""
        return {
            "patch_size": self.patch_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_heads,
        }

    def build_encoder(self, latent_channels: int, image_size: int) -> "ViTEncoder":
        """With fresh weights; see `ViTEncoder.load_weights`."""
        return ViTEncoder(self, latent_channels, image_size)

    def build_decoder(self, latent_channels: int, image_size: int, encoder: Encoder) -> ConvDecoder:
        """By convolutions, as that of the other kind."""
        return ConvDecoder(self.decoder, latent_channels)


class ViTEncoder(Encoder):
    """(B, 3, H, W) in [-1, 1] -> (B, c, H/f, W/f)."""

    def __init__(self, config: ViTConfig, latent_channels: int, image_size: int) -> None:
        super().__init__()
        self.config = config
        shape = siglip_settings(**config.shape, num_hidden_layers=config.num_layers, image_size=image_size)
        self.siglip = build_siglip(shape)
        self.project = nn.Conv2d(config.hidden_size, latent_channels, 1)
        self.register_state_dict_post_hook(_to_own_names)
        self.register_load_state_dict_pre_hook(_to_library_names)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Images in [-1, 1] -> feature maps."""
        return self.project(siglip_features(self.siglip, x))

    def start(self) -> None:
        """Read the weights that the settings name."""
        if self.config.weights is not None:
            self.load_weights(self.config.weights)

    @torch.no_grad()
    def load_weights(self, source: str) -> None:
        """Take patch embedding, positions and the first n layers from a SigLIP checkpoint, a folder or a hub id.

        Positions are resampled to this image size. The norm after the layers stays fresh: the checkpoint's belongs to
        its last layer. Raises InputError where the checkpoint cannot be read or has another shape.
        """
        theirs = load_siglip(source)
        given_config, config = theirs.config, self.config
        wrong = [
            f"{name} {wanted} (the checkpoint's is {getattr(given_config, name)})"
            for name, wanted in config.shape.items()
            if getattr(given_config, name) != wanted
        ]
        if config.num_layers > given_config.num_hidden_layers:
            wrong.append(f"num_layers {config.num_layers} (the checkpoint has {given_config.num_hidden_layers})")
        if wrong:
            raise InputError(f"network.weights {source!r} does not fit: {', '.join(wrong)}")
        given, own = theirs.state_dict(), self.siglip.state_dict()
        for name, tensor in own.items():
            if name == POSITIONS:
                tensor.copy_(resample_positions(given[name], len(tensor)))
            elif not name.startswith("post_layernorm."):
                tensor.copy_(given[name])


def _to_own_names(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}siglip.{INSIDE}")]:
        state[f"{prefix}siglip.{name.removeprefix(f'{prefix}siglip.{INSIDE}')}"] = state.pop(name)


def _to_library_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if hasattr(module.siglip, INSIDE.rstrip(".")):
        for name in [name for name in state if name.startswith(f"{prefix}siglip.")]:
            state[f"{prefix}siglip.{INSIDE}{name.removeprefix(f'{prefix}siglip.')}"] = state.pop(name)


def resample_positions(table: Float[Tensor, "P E"], count: int) -> Float[Tensor, "n E"]:
    """Position embeddings of a square grid for another one of `count` positions; the same table for the same count."""
    if len(table) == count:
        return table
    before, after = (round(n**0.5) for n in (len(table), count))
    grid = table.T.unflatten(1, (before, before))[None]
    # With antialiasing torch takes the cubic kernel that keeps a straight line straight, on finer grids too.
    return F.interpolate(grid, size=(after, after), mode="bicubic", antialias=True)[0].flatten(1).T
