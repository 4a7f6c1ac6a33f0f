"""The semantic loss: closed forms, who learns from it, and that a run with it resumes to the bit."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from channelvq.config import digest
from channelvq.errors import InputError
from channelvq.losses.semantic import SemanticConfig, SemanticHead, semantic_loss
from channelvq.train.run import load_recipe, train
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

TINY = (
    "model.image_size=64", "model.latent_channels=6", "model.network.base_channels=8", "train.batch_size=4",
    "model.quantizer.codebook_size=16", "data.validation_images=4", "objective.start_images=8", "train.device=cpu",
    "train.warmup_steps=0",
)  # fmt: skip


def recipe(teacher: Path, *more: str) -> TokenizerRecipe:
    return load_recipe("small/smoke", [*TINY, f"objective.semantic.teacher={teacher}", *more], of=TokenizerRecipe)


def test_loss_in_closed_form() -> None:
    predicted = torch.tensor([[3.0, 0.0], [0.0, -2.0]]).view(2, 2, 1, 1)
    target = torch.tensor([[1.0, 1.0], [0.0, 5.0]]).view(2, 2, 1, 1)
    # Angles of 45 and 180 degrees, whatever the lengths.
    assert float(semantic_loss(predicted, target)) == pytest.approx((1 - math.sqrt(0.5) + 2) / 2)
    assert float(semantic_loss(7 * predicted, predicted)) == pytest.approx(0, abs=1e-6)


def test_a_target_on_another_grid_is_resampled_to_the_latents() -> None:
    predicted = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    constant = torch.tensor([1.0, 2.0, 0.0, 0.0, -1.0]).view(1, 5, 1, 1)
    expected = semantic_loss(predicted, constant.expand(2, 5, 4, 4))
    torch.testing.assert_close(semantic_loss(predicted, constant.expand(2, 5, 7, 7)), expected)


def test_half_precision_is_compared_in_float32() -> None:
    predicted, target = torch.randn(2, 300, 2, 2).bfloat16(), torch.randn(2, 300, 2, 2).bfloat16()
    loss = semantic_loss(predicted, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, semantic_loss(predicted.float(), target.float()))


def test_teacher_is_the_whole_model_in_evaluation_without_gradients(siglip_folder: Path) -> None:
    from transformers import SiglipModel

    teacher = SemanticConfig(str(siglip_folder)).build(8).teacher
    x = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_(True)
    features = teacher(x)
    assert not features.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.siglip.training
    whole = SiglipModel.from_pretrained(siglip_folder).vision_model.eval()
    with torch.no_grad():
        expected = whole(pixel_values=x).last_hidden_state
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)
    assert teacher(torch.rand(1, 3, 64, 64)).shape == (1, 32, 4, 4)  # resized to the size that it knows
    with pytest.raises(InputError, match="SigLIP 'nobody/siglip'"):
        SemanticConfig("nobody/siglip").build(8)


@pytest.mark.parametrize("kind", ["plain", "ibq"])
def test_who_learns_from_the_term(siglip_folder: Path, kind: str) -> None:
    task = TokenizerTask(recipe(siglip_folder, f"model.quantizer.kind={kind}", "nested.alpha=0"))
    task.start()
    task.tokenizer.train()
    terms = task.losses("tokenizer", task.models, next(task.batches(0, 0, 1)), 0, part=0).terms
    assert 0 < float(terms["semantic"].detach()) < 2
    terms["semantic"].backward()

    def moved(module: nn.Module) -> bool:
        return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())

    assert task.meaning is not None
    assert moved(task.tokenizer.encoder)  # straight through the lookup
    assert all(p.grad is not None and bool(p.grad.any()) for p in task.models["semantic_head"].parameters())
    assert not moved(task.meaning.teacher)
    assert not moved(task.tokenizer.decoder)
    # The plain codebook learns from its own loss alone; IBQ's softmax hands it every gradient of z_q.
    assert moved(task.tokenizer.quantizer) is (kind == "ibq")


def test_the_term_is_of_the_kept_prefix_and_weighted(siglip_folder: Path) -> None:
    task = TokenizerTask(recipe(siglip_folder, "nested.alpha=1", "objective.semantic.weight=0.5"))
    task.start()
    batch = next(task.batches(0, 0, 1))
    keep = task._keep(4, 0, 0)
    assert keep is not None
    assert not keep.all()
    with torch.no_grad():
        terms = task.losses("tokenizer", task.models, batch, 0, part=0).terms
        x = batch.float() / 127.5 - 1
        predicted = task.models["semantic_head"](task.tokenizer.encode(x, keep).z_q)
        assert task.meaning is not None
        expected = 0.5 * (1 - torch.cosine_similarity(predicted, nn.functional.interpolate(
            task.meaning.teacher(x), size=(8, 8), mode="bilinear", antialias=True), dim=1).mean())  # fmt: skip
    torch.testing.assert_close(terms["semantic"], expected)


def test_a_resumed_run_is_equal_to_the_bit_and_the_head_stays_behind(siglip_folder: Path, tmp_path: Path) -> None:
    def fit(name: str, *more: str) -> dict[str, torch.Tensor]:
        given = (f"train.output_dir={tmp_path / name}", "train.steps=4", "train.checkpoint_every=2", "train.ema=0.5")
        assert train(recipe(siglip_folder, *given, *more)) is not None
        return load_file(tmp_path / name / "final/model.safetensors")

    whole = fit("whole")
    assert not any("head" in name or "teacher" in name for name in whole)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for name in ("checkpoints/step-00000004", "final"):
        shutil.rmtree(tmp_path / "parts" / name)
    parts = fit("parts", "train.resume=true")
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_clipping_sees_the_head_too(siglip_folder: Path, tmp_path: Path) -> None:
    from channelvq.train.engine import Engine

    config = recipe(siglip_folder, f"train.output_dir={tmp_path}")
    task = TokenizerTask(config)
    clipped = {id(p) for p in Engine(task, config.train, config)._updated_by("tokenizer")}
    assert clipped == {id(p) for name in ("tokenizer", "semantic_head") for p in task.models[name].parameters()}


def test_head_maps_every_position_alone() -> None:
    head, z = SemanticHead(6, 10), torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(head(z)[:, :, 1:2, 2:3], head(z[:, :, 1:2, 2:3]))


def test_the_option_leaves_digests_as_they_were() -> None:
    plain = load_recipe("small/smoke", of=TokenizerRecipe)
    assert digest(plain) == digest(load_recipe("small/smoke", ["objective.semantic=null"], of=TokenizerRecipe))


def test_a_target_on_a_finer_grid_is_averaged_down() -> None:
    """Of stripes finer than the latent's grid nothing may be left but their mean."""
    stripes = torch.tensor([3.0, -1.0, -1.0, 3.0]).repeat(8)[None, None, None].expand(2, 1, 32, 32)
    target = torch.cat([stripes, torch.ones_like(stripes)], dim=1)
    inside = torch.ones(2, 2, 8, 8)  # the mean of the stripes is 1, as the other feature
    assert semantic_loss(inside, target).item() < 0.01
    # One side of the same length is not the same grid.
    tall = target[:, :, :, :8].contiguous()
    assert semantic_loss(inside, tall).ndim == 0


def test_the_head_is_not_linear() -> None:
    head = SemanticHead(4, 6)
    assert [type(layer) for layer in head.layers] == [nn.Conv2d, nn.GELU, nn.Conv2d]
    assert head(torch.randn(2, 4, 3, 3)).shape == (2, 6, 3, 3)


def test_similarity_is_over_features_not_positions() -> None:
    predicted = torch.randn(2, 3, 4, 5)
    scales = torch.rand(2, 1, 4, 5) + 0.5  # of each position's feature vector
    assert semantic_loss(predicted, predicted * scales).item() == pytest.approx(0, abs=1e-6)
