"""Training a large backbone by low-rank additions alone (LoRA; Hu et al. 2021, arXiv 2106.09685).

Beside each linear layer W of the backbone, which stays as it is, stand two thin ones: W x + alpha / rank B A x. The
layers are peft's. What is saved is a generator as any other: the additions are summed into the weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from channelvq.car.model import CAR
from channelvq.config import STRICT
from channelvq.errors import InputError

ADDED = "lora_"  # in the names of what peft adds
BASE = "base_layer"  # and of what was there before


@dataclass(frozen=True, config=STRICT)
class LoRAConfig:
    """Of the additions beside each linear layer of the backbone.

    rank: numbers between the two thin layers. alpha: over rank, by how much the additions are multiplied.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0


def add_low_rank(backbone: nn.Module, config: LoRAConfig, generator: torch.Generator) -> None:
    """Put the additions into a backbone, in place; at first they add nothing. InputError where peft is missing.

    generator: draws the A; the B are zero.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # takes long to import
    except ImportError:
        raise InputError("objective.lora needs the package peft: pip install 'channelvq[lora]'") from None
    backbone.requires_grad_(False)
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear")  # type: ignore[arg-type]
    with torch.random.fork_rng():  # peft draws from the global generator
        inject_adapter_in_model(settings, backbone)
    for name, weight in backbone.named_parameters():
        if f"{ADDED}A" in name:  # as peft draws it, by our generator
            nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)


def trained_of(backbone: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a backbone that training changes: the additions where there are some, else all."""
    named = list(backbone.named_parameters())
    added = [weight for name, weight in named if ADDED in name]
    yield from added or (weight for _, weight in named)


def merged(car: CAR) -> CAR:
    """The generator with the additions summed into its weights, a new one; itself where there are none."""
    layers: dict[str, Any] = {name: layer for name, layer in car.named_modules() if hasattr(layer, BASE)}
    if not layers:
        return car
    state: dict[str, Tensor] = {}
    for name, weight in car.state_dict().items():
        owner = next((prefix for prefix in layers if name.startswith(f"{prefix}.")), None)
        if owner is None:
            state[name] = weight
        elif name.startswith(f"{owner}.{BASE}."):
            own = name.removeprefix(f"{owner}.{BASE}.")
            added = layers[owner].get_delta_weight("default") if own == "weight" else 0.0
            state[f"{owner}.{own}"] = weight + added
    whole = CAR(car.config, car.tokenizer, car.text, fresh=False)
    whole.load_state_dict(state)
    return whole.train(car.training)
