"""Layers that compute again what they do not keep: the same losses and gradients, and less memory."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from channelvq.car.backbone import build_backbone, recompute_layers
from channelvq.errors import InputError
from channelvq.train.car_task import CARRecipe, CARTask
from channelvq.train.plan import kept_for_gradients
from channelvq.train.run import load_recipe

TINY = (
    "tokenizer=bundled", "data.sources.scenes.sprites=shapes", "data.validation_images=4", "objective.train_images=8",
    "objective.text_vocab_size=300", "objective.lm_steps=1", "objective.stage1_steps=1", "train.batch_size=8",
    "model.backbone.hidden_size=32", "model.backbone.num_hidden_layers=4", "model.backbone.num_attention_heads=2",
    "model.max_text_tokens=64", "model.num_tokens=16", "train.device=cpu", "train.precision=no", "train.compile=false",
)  # fmt: skip


def step(task: CARTask, number: int) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients and the bytes that autograd keeps, of a step."""
    task.car.train().zero_grad()
    batch = next(task.batches(number, 0, 1))
    with kept_for_gradients(task.car) as kept:
        (loss,) = task.losses("car", task.models, batch, number, 0).terms.values()
    loss.backward()
    found = {name: p.grad.clone() for name, p in task.car.named_parameters() if p.grad is not None}
    return loss.detach(), found, sum(kept.values())


def test_gradients_are_the_same_to_the_bit_from_less_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    settings = (*TINY, f"train.output_dir={tmp_path}/run")
    usual, again = (
        CARTask(load_recipe("small/scenes-car", (*settings, *more), of=CARRecipe))
        for more in ((), ("objective.activation_checkpointing=true",))
    )
    for number in (0, 1, 2):  # language, stage I with a frozen backbone, stage II
        (loss, gradients, kept), (other_loss, other_gradients, other_kept) = step(usual, number), step(again, number)
        assert torch.equal(loss, other_loss)
        assert set(gradients) == set(other_gradients)
        assert all(torch.equal(gradient, other_gradients[name]) for name, gradient in gradients.items())
        assert other_kept < 0.7 * kept
    assert torch.equal(usual.car.generate("a circle", seed=0).ids, again.car.generate("a circle", seed=0).ids)


def test_a_backbone_without_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_backbone({"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}, 300, None)
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match="transformers does not have it for qwen3"):
        recompute_layers(model)
