"""Quantizers, on either axis of a feature map."""

from channelvq.quantize.channel_vq import ChannelVQ
from channelvq.quantize.quantized import Quantized

__all__ = ["ChannelVQ", "Quantized"]
