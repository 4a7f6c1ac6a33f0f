"""A tokenizer and images small enough for tests of the doctor."""

import torch

from channelvq import CVQTokenizer
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.channel_vq import QuantizerConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig

CHANNELS, CODES = 6, 20


def tiny(axis: str = "channel", quantizer: QuantizerConfig | None = None) -> CVQTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ConvConfig(stem=2, base_channels=16, multipliers=(1, 2), num_blocks=1)
        config = CVQConfig(
            image_size=16, latent_channels=CHANNELS, axis=axis, network=network,  # type: ignore[arg-type]
            quantizer=quantizer or PlainConfig(codebook_size=CODES),
        )  # fmt: skip
        tokenizer = CVQTokenizer(config)
    tokenizer.quantizer.start_from(tokenizer.latents(noise(30)), torch.Generator().manual_seed(0))
    return tokenizer


def noise(count: int) -> torch.Tensor:
    shape = (count, 3, 16, 16)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
