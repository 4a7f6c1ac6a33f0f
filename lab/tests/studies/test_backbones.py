"""The study of backbones: what it tries of each kind, on tiny generators of random weights."""

import pytest
import torch

from channelvq import CAR, CVQTokenizer
from channelvq.car.config import CARConfig
from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.data.fetched.fashion import CLASSES
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig
from lab.studies.backbones import BACKBONES, VARIANTS, cached_equals_naive, recipe, together_equals_alone, works

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 64}  # fmt: skip


def tiny(kind: str) -> CAR:
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    torch.manual_seed(0)
    tokenizer = CVQTokenizer(CVQConfig(16, 8, network=network, quantizer=PlainConfig(codebook_size=32))).eval()
    with torch.no_grad():
        tokenizer.quantizer.codes().normal_()
    settings = {key: SMALL.get(key, value) for key, value in BACKBONES[kind].items()}
    text = TextTokenizer(train_bpe(CLASSES, 300))
    return CAR(CARConfig(backbone=settings, max_text_tokens=24), tokenizer, text).double().eval()


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_cache_and_neighbours_change_nothing(kind: str) -> None:
    car = tiny(kind)
    assert cached_equals_naive(car) == "yes"
    assert together_equals_alone(car) == "yes"


def test_what_does_not_work_says_why() -> None:
    assert "gives other logits than CAR" in works(tiny("Gemma 3").float())["export"]
    found = works(tiny("Qwen3").float())
    assert {key: found[key] for key in ("cached", "together", "export")} == dict.fromkeys(
        ("cached", "together", "export"), "yes"
    )


def test_runs_differ_in_backbone_and_seed_alone() -> None:
    recipes = [recipe(name) for name in VARIANTS]
    assert len({str(each.model.backbone) for each in recipes}) == len(BACKBONES)
    assert len({(each.train.steps, each.train.batch_size, each.objective.train_images) for each in recipes}) == 1
