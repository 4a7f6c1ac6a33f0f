"""Quantizers, on either axis of a feature map."""

from channelvq.quantize.channel_vq import ChannelVQ
from channelvq.quantize.quantized import Quantized
from channelvq.quantize.residual_vq import ResidualChannelVQ

__all__ = ["ChannelVQ", "Quantized", "ResidualChannelVQ"]
