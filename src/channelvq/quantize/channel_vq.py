"""ChannelVQ: a quantizer on a chosen axis of a feature map, as one module for any model."""

import math
from typing import Any, Self, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from channelvq.checks import check_whole_number, whole_numbers
from channelvq.config import from_dict
from channelvq.errors import InputError
from channelvq.quantize.axis import Axis, check_axis, checked_vectors, shaped_like
from channelvq.quantize.draw import asked_draw
from channelvq.quantize.quantized import Quantized
from channelvq.quantize.registry import AnyQuantizerConfig, QuantizerConfig

DEFAULT_KIND = "ema"  # in an autoencoder of a few hundred steps the paper's "plain" loses 1 dB and more to it


class ChannelVQ(nn.Module):
    """Vector quantization of a feature map along its channels (CVQ) or its positions (classic VQ).

    Usage: `z_q, indices, loss = ChannelVQ(codebook_size=4096, codebook_dim=16 * 16)(z)` for z of shape (B, C, 16, 16).

    codebook_size: N. codebook_dim: D = h*w on the channel axis, D = C on the patch axis. num_tokens: K, for kinds that
    treat every token in its own way; without it they take it from the first call. Further keywords are `kind`
    ("ema" if none is given, "plain", "simvq", "simvq-tokenwise", "ibq", "lc", "fsq", "lfq" or one that was registered)
    and the settings of that kind's config (beta, start, ...); or give a `config` instead of them.

    The codebook starts from the first training batch. Where that has no more tokens than there are codes, each token is
    its own codeword and the first loss is 0.
    """

    def __init__(
        self,
        codebook_size: int | None = None,
        codebook_dim: int | None = None,
        *,
        num_tokens: int | None = None,
        axis: Axis = "channel",
        config: QuantizerConfig | None = None,
        **settings: object,
    ) -> None:
        super().__init__()
        config, dim, tokens = chosen("ChannelVQ", codebook_size, codebook_dim, num_tokens, axis, config, settings)
        self.axis: Axis = axis
        self.codebook_dim = dim
        self.quantizer = config.build(dim, tokens)

    @classmethod
    def like(cls, z: Float[Tensor, "B ..."], codebook_size: int, *, axis: Axis = "channel", **settings: Any) -> Self:
        """A quantizer for feature maps (or sequences) such as z: D, and K where the kind wants it, are those of z.

        settings: as of the constructor. Of z nothing but the shape and the device counts.
        """
        check_axis(axis, cls.__name__)
        shape = tuple(z.shape) if isinstance(z, Tensor) else ()
        dim = shape[1] if len(shape) > 3 and axis == "patch" else math.prod(shape[2:])
        tokens = checked_vectors(z, axis, dim, cls.__name__).shape[1]
        return cls(codebook_size, dim, num_tokens=tokens, axis=axis, **settings).to(z.device)

    @property
    def codebook_size(self) -> int:
        """N."""
        return self.quantizer.codebook_size

    def codes(self) -> Float[Tensor, "N D"]:
        """The table that indices refer to; (N, r) for "simvq-tokenwise", whose tokens see it through their maps."""
        return self.quantizer.codes()

    def forward(
        self,
        z: Float[Tensor, "B ..."],
        keep: Bool[Tensor, "B K"] | None = None,
        *,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """(B, C, h, w) -> `Quantized` with z_q (B, C, h, w) and indices (B, C) on the channel axis, (B, h*w) else.

        z: a feature map, also that of a video (B, C, T, h, w), or a sequence (B, K, D) whose vectors are the tokens,
        with z_q in the shape of z and indices (B, K).
        keep: tokens that stay, (B, K); the others are set to zero in z_q and do not count in the loss.
        temperature, generator: draw each code at random, the nearer the likelier (draw.py), instead of the nearest one.
        """
        vectors = checked_vectors(z, self.axis, self.codebook_dim, "ChannelVQ")
        out = self.quantizer(vectors, keep, asked_draw(temperature, generator))
        z_q = out.z_q if keep is None else out.z_q.masked_fill(~keep[:, :, None], 0.0)
        return Quantized(shaped_like(z_q, z, self.axis), out.indices, out.losses)

    def indices_to_codes(self, indices: Int64[Tensor, "B k"]) -> Float[Tensor, "B k D"]:
        """Codewords of a token sequence or of any prefix of it; raises InputError for an id that is none."""
        return self.quantizer.indices_to_codes(checked_ids(indices, "(B, k)", self.codebook_size))

    def start_from(self, z: Float[Tensor, "B ..."], generator: torch.Generator) -> None:
        """Start the codebook from feature maps (k-means, or what its kind starts by)."""
        vectors = checked_vectors(z, self.axis, self.codebook_dim, "ChannelVQ")
        self.quantizer.start_from_tokens(vectors, generator)


def chosen(
    where: str,
    codebook_size: int | None,
    codebook_dim: int | None,
    num_tokens: int | None,
    axis: str,
    config: QuantizerConfig | None,
    settings: dict[str, object],
) -> tuple[QuantizerConfig, int, int | None]:
    """(the settings of a quantizer, D, K) by what a module was given; raises InputError that begins with `where`."""
    check_axis(axis, where)
    if codebook_dim is None or (config is None) == (codebook_size is None) or (config is not None and settings):
        raise InputError(
            f"{where}: give codebook_dim, and either codebook_size (with settings such as beta=0.25) or config"
        )
    if config is not None and not hasattr(config, "build"):
        raise InputError(f"{where}: config is the settings of a quantizer, such as SimVQConfig(), got {config!r}")
    dim = check_whole_number(f"{where}: codebook_dim, the numbers in a codeword", codebook_dim, 1)
    if config is None:
        given = {"kind": DEFAULT_KIND, "codebook_size": codebook_size, **settings}
        kinds: type[QuantizerConfig] = cast(Any, AnyQuantizerConfig)  # a type to pydantic alone
        config = from_dict(kinds, given, where=where)
    if num_tokens is not None:
        num_tokens = check_whole_number(f"{where}: num_tokens, the tokens of an image", num_tokens, 1)
    return config, dim, num_tokens


def checked_ids(indices: Tensor, shape: str, codebook_size: int) -> Int64[Tensor, "..."]:
    """Ids as int64; raises InputError unless they have as many dimensions as `shape` tells and are 0..N-1."""
    indices = whole_numbers("indices_to_codes", indices)
    if indices.ndim != shape.count(",") + 1:
        raise InputError(f"indices_to_codes: expected ids {shape}, got shape {tuple(indices.shape)}")
    wrong = indices[(indices < 0) | (indices >= codebook_size)]
    if len(wrong):
        raise InputError(f"id {int(wrong[0])} is out of range: ids are 0 to {codebook_size - 1}")
    return indices
