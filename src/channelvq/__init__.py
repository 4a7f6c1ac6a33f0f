"""Channel-wise vector quantization (CVQ) and channel-wise autoregressive generation (CAR).

Importing this package is cheap: torch is loaded when the first name below is used.
"""

from typing import TYPE_CHECKING

from channelvq.lazy import lazily

if TYPE_CHECKING:
    from channelvq.car.model import CAR
    from channelvq.car.settings import SamplingSettings
    from channelvq.quantize import ChannelVQ, Quantized, ResidualChannelVQ
    from channelvq.tokenizer import CVQTokenizer
    from channelvq.video import ClipTokenizer

__version__ = "0.1.0"
__all__ = [
    "CAR", "CVQTokenizer", "ChannelVQ", "ClipTokenizer", "Quantized", "ResidualChannelVQ", "SamplingSettings",
    "__version__",
]  # fmt: skip

__getattr__ = lazily(__name__, {
    "CAR": "channelvq.car.model",
    "CVQTokenizer": "channelvq.tokenizer",
    "ChannelVQ": "channelvq.quantize",
    "ClipTokenizer": "channelvq.video",
    "Quantized": "channelvq.quantize",
    "ResidualChannelVQ": "channelvq.quantize",
    "SamplingSettings": "channelvq.car.settings",
})  # fmt: skip


def __dir__() -> list[str]:
    return __all__
