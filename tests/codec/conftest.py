import pytest
import torch

from channelvq.car.config import CARConfig
from channelvq.car.model import CAR
from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig, CVQTokenizer

BACKBONE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CODES, TOKENS = 60, 24


@pytest.fixture(scope="session")
def tokenizer() -> CVQTokenizer:
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    quantizer = PlainConfig(codebook_size=CODES, start="uniform")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CVQTokenizer(CVQConfig(16, TOKENS, network=network, quantizer=quantizer)).eval()


@pytest.fixture(scope="session")
def car(tokenizer: CVQTokenizer) -> CAR:
    text = TextTokenizer(train_bpe(["a red cat"], 256))
    config = CARConfig(backbone=BACKBONE, max_text_tokens=16)
    model = CAR(config, tokenizer, text, generator=torch.Generator().manual_seed(2)).eval()
    with torch.no_grad():
        model.head.weight.mul_(30)  # fresh weights are near uniform, under which no mistake would show
    return model


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    return torch.randint(CODES, (5, TOKENS), generator=torch.Generator().manual_seed(3))
