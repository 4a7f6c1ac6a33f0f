"""The family of quantizers: the settings of each kind by its name."""

from typing import Annotated, Protocol

from channelvq.config import of_kind
from channelvq.quantize.base import Quantizer
from channelvq.registry import Registry


class QuantizerConfig(Protocol):
    """What the settings of every kind have."""

    @property
    def kind(self) -> str:
        """The name that the kind is registered by."""
        ...

    @property
    def codebook_size(self) -> int:
        """N."""
        ...

    def build(self, dim: int, num_tokens: int | None = None) -> Quantizer:
        """The quantizer, for tokens of `dim` numbers; num_tokens: of an image, where that is known."""
        ...


QUANTIZERS: Registry[type[QuantizerConfig]] = Registry(
    "quantizer",
    {
        "plain": "channelvq.quantize.codebook:PlainConfig",
        "ema": "channelvq.quantize.ema:EMAConfig",
        "simvq": "channelvq.quantize.simvq:SimVQConfig",
        "simvq-tokenwise": "channelvq.quantize.tokenwise:TokenwiseSimVQConfig",
        "simvq-residual": "channelvq.quantize.residual:ResidualSimVQConfig",
        "ibq": "channelvq.quantize.ibq:IBQConfig",
        "lc": "channelvq.quantize.lc:LCConfig",
        "fsq": "channelvq.quantize.fsq:FSQConfig",
        "lfq": "channelvq.quantize.lfq:LFQConfig",
    },
)
AnyQuantizerConfig = Annotated[QuantizerConfig, of_kind(QUANTIZERS, default="plain")]
