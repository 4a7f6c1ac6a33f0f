"""ChannelVQ: a quantizer on a chosen axis of a feature map, as one module for any model."""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from channelvq.checks import check_whole_number, whole_numbers
from channelvq.config import from_dict
from channelvq.errors import InputError
from channelvq.quantize.axis import Axis, from_vectors, to_vectors
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
        if codebook_dim is None or (config is None) == (codebook_size is None) or (config is not None and settings):
            raise InputError(
                "ChannelVQ: give codebook_dim, and either codebook_size (with settings such as beta=0.25) or config"
            )
        if config is not None and not hasattr(config, "build"):
            raise InputError(f"ChannelVQ: config is the settings of a quantizer, such as SimVQConfig(), got {config!r}")
        if axis not in ("channel", "patch"):
            raise InputError(f"ChannelVQ: axis is 'channel' or 'patch', got {axis!r}")
        codebook_dim = check_whole_number("ChannelVQ: codebook_dim, the numbers in a codeword", codebook_dim, 1)
        if num_tokens is not None:
            num_tokens = check_whole_number("ChannelVQ: num_tokens, the tokens of an image", num_tokens, 1)
        if config is None:
            given = {"kind": DEFAULT_KIND, "codebook_size": codebook_size, **settings}
            kinds: type[QuantizerConfig] = cast(Any, AnyQuantizerConfig)  # a type to pydantic alone
            config = from_dict(kinds, given, where="ChannelVQ")
        self.axis: Axis = axis
        self.codebook_dim = codebook_dim
        self.quantizer = config.build(codebook_dim, num_tokens)

    @property
    def codebook_size(self) -> int:
        """N."""
        return self.quantizer.codebook_size

    def codes(self) -> Float[Tensor, "N D"]:
        """The table that indices refer to; (N, r) for "simvq-tokenwise", whose tokens see it through their maps."""
        return self.quantizer.codes()

    def forward(self, z: Float[Tensor, "B C h w"], keep: Bool[Tensor, "B K"] | None = None) -> Quantized:
        """(B, C, h, w) -> `Quantized` with z_q (B, C, h, w) and indices (B, C) on the channel axis, (B, h*w) else.

        keep: tokens that stay, (B, K); the others are set to zero in z_q and do not count in the loss.
        """
        if not isinstance(z, Tensor) or z.ndim != 4 or 0 in z.shape:
            given = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise InputError(f"ChannelVQ: expected a feature map (B, C, h, w), none of them 0, got {given}")
        if not z.is_floating_point():
            raise InputError(f"ChannelVQ: expected a feature map of floats, got {z.dtype}; convert it with .float()")
        vectors = to_vectors(z, self.axis)
        if vectors.shape[2] != self.codebook_dim:
            raise InputError(
                f"ChannelVQ: a token on the {self.axis} axis of {tuple(z.shape)} has {vectors.shape[2]} numbers, "
                f"the codewords have {self.codebook_dim}"
            )
        out = self.quantizer(vectors, keep)
        z_q = out.z_q if keep is None else out.z_q.masked_fill(~keep[:, :, None], 0.0)
        return Quantized(from_vectors(z_q, self.axis, (z.shape[2], z.shape[3])), out.indices, out.losses)

    def indices_to_codes(self, indices: Int64[Tensor, "B k"]) -> Float[Tensor, "B k D"]:
        """Codewords of a token sequence or of any prefix of it; raises InputError for an id that is none."""
        indices = whole_numbers("indices_to_codes", indices)
        if indices.ndim != 2:
            raise InputError(f"indices_to_codes: expected ids (B, k), got shape {tuple(indices.shape)}")
        wrong = indices[(indices < 0) | (indices >= self.quantizer.codebook_size)]
        if len(wrong):
            raise InputError(f"id {int(wrong[0])} is out of range: ids are 0 to {self.quantizer.codebook_size - 1}")
        return self.quantizer.indices_to_codes(indices)

    def start_from(self, z: Float[Tensor, "B C h w"], generator: torch.Generator) -> None:
        """Start the codebook from feature maps (k-means, or what its kind starts by)."""
        self.quantizer.start_from_tokens(to_vectors(z, self.axis), generator)
