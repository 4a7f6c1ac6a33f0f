"""Putting a generator into the package: half precision only rounds the weights, and all parts still fit."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from channelvq.car.config import CARConfig
from channelvq.car.model import CAR
from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from lab.bundle.generator import store_generator
from lab.bundle.tokenizer import halve, shrink

BACKBONE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def car() -> CAR:
    torch.manual_seed(0)
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    config = CVQConfig(image_size=16, latent_channels=8, network=network, quantizer=PlainConfig(codebook_size=32))
    text = TextTokenizer(train_bpe(["a green dog", "two cats"], 300))
    return CAR(CARConfig(backbone=BACKBONE, max_text_tokens=24), CVQTokenizer(config).eval(), text).eval()


def test_stored_weights_are_the_halved_ones_and_the_codebook_is_the_tokenizers(car: CAR, tmp_path: Path) -> None:
    car.save_pretrained(tmp_path / "final")
    store_generator(tmp_path / "final", tmp_path / "package", halve)
    stored = CAR.from_pretrained(tmp_path / "package")
    assert next(stored.parameters()).dtype == torch.float32  # a CPU is slow in half precision
    assert torch.equal(stored.codebook, stored.tokenizer.quantizer.codes())
    for name, weight in car.named_parameters():
        assert torch.equal(stored.get_parameter(name), weight.half().float()), name
    kinds = {name: t.dtype for name, t in load_file(tmp_path / "package/model.safetensors").items()}
    assert kinds["head.weight"] == torch.float16
    assert kinds["codebook"] == torch.float32
    assert stored.generate(["a green dog"], seed=3).ids.shape == (1, 8)


def test_a_generator_of_a_byte_a_number_loads_and_is_near(car: CAR, tmp_path: Path) -> None:
    car.save_pretrained(tmp_path / "final")
    store_generator(tmp_path / "final", tmp_path / "package", partial(shrink, large=256))
    stored = CAR.from_pretrained(tmp_path / "package")
    kinds = {name: t.dtype for name, t in load_file(tmp_path / "package/model.safetensors").items()}
    assert kinds["head.weight"] == torch.int8
    assert kinds["codebook"] == torch.float32
    assert torch.equal(stored.codebook, stored.tokenizer.quantizer.codes())
    for name, weight in car.named_parameters():
        step = weight.detach().abs().amax() / 254 if weight.ndim > 1 else 1e-3
        assert torch.allclose(stored.get_parameter(name), weight, atol=float(step), rtol=1e-3), name
    assert stored.generate(["a green dog"], seed=3).ids.shape == (1, 8)
