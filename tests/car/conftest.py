"""A generator small enough to test, with weights large enough that every token depends on what came before."""

from collections.abc import Callable

import pytest
import torch

from channelvq.car.config import CARConfig
from channelvq.car.model import CAR
from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.nn.conv import ConvConfig
from channelvq.nn.resampler import ResamplerConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig, CVQTokenizer

CAPTIONS = ["a photo of two bananas", "a red car left of a blue umbrella", "a green dog", "three small black cats"]
BACKBONE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def tiny_tokenizer(codes: int = 32, resampler: ResamplerConfig | None = None) -> CVQTokenizer:
    torch.manual_seed(0)
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    quantizer = PlainConfig(codebook_size=codes, start="uniform")
    config = CVQConfig(image_size=16, latent_channels=8, network=network, quantizer=quantizer, resampler=resampler)
    return CVQTokenizer(config).eval()


def tiny_text(vocab_size: int = 300) -> TextTokenizer:
    return TextTokenizer(train_bpe(CAPTIONS, vocab_size))


def make_car(sharpness: float = 40.0, **settings: object) -> CAR:
    """sharpness: how much larger than fresh the head is; a fresh model predicts nearly the same whatever it sees."""
    config = CARConfig(**{"backbone": BACKBONE, "max_text_tokens": 24} | settings)  # type: ignore[arg-type]
    car = CAR(config, tiny_tokenizer(), tiny_text(), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        car.head.weight.mul_(sharpness if config.head == "linear" else 10 * sharpness)
        for layer in car.backbone.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(8)
    return car.eval()


@pytest.fixture(scope="session")
def car() -> CAR:
    """float32; no test changes it."""
    return make_car()


@pytest.fixture(scope="session")
def car64() -> CAR:
    """float64, where equality of ids between different computations is a matter of logic, not of rounding."""
    return make_car().double()


@pytest.fixture
def new_car() -> Callable[..., CAR]:
    """Makes models that a test may change."""
    return make_car
