"""A generator and a detector of random weights, as folders: for what is done with images, whatever they show."""

from pathlib import Path

import pytest
import torch

from channelvq.car.config import CARConfig
from channelvq.car.model import CAR
from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.nn.conv import ConvConfig
from channelvq.nn.detector import Detector, DetectorConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig, CVQTokenizer

BACKBONE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="session")
def car_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 px images of 8 tokens, prompts of up to 24 tokens."""
    torch.manual_seed(0)
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    config = CVQConfig(image_size=16, latent_channels=8, network=network, quantizer=PlainConfig(codebook_size=32))
    text = TextTokenizer(train_bpe(["a photo of two bananas", "a red car left of a blue umbrella"], 300))
    car = CAR(CARConfig(BACKBONE, max_text_tokens=24), CVQTokenizer(config).eval(), text)
    with torch.no_grad():
        car.head.weight.mul_(40)  # else every image is nearly the same
    folder = tmp_path_factory.mktemp("car")
    car.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It knows bananas and cars of 16 px, red and blue."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("detector")
    config = DetectorConfig(("banana", "car"), ("red", "blue"), (8, 8, 8), 1, image_size=16, threshold=0.0)
    Detector(config).save(folder)
    return folder
