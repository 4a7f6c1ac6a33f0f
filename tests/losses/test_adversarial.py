"""The adversarial game: closed forms, who learns from which term, and that a run with it resumes to the bit."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from channelvq.losses.adversarial import (
    LARGEST_ADAPTIVE,
    SMALLEST_GRADIENT,
    AdversarialConfig,
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    lecam,
    prefix_weights,
    r1_penalty,
    ramp,
)
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

TINY = (
    "model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8", "train.warmup_steps=0",
    "model.quantizer.codebook_size=16", "data.validation_images=4", "objective.start_images=8", "train.batch_size=4",
    "train.device=cpu", "train.log_every=1", "objective.adversarial.base_channels=8",
)  # fmt: skip


def recipe(folder: Path, steps: int, *more: str) -> TokenizerRecipe:
    return load_recipe(
        "small/smoke", [*TINY, f"train.steps={steps}", f"train.output_dir={folder}", *more], of=TokenizerRecipe
    )


def discriminator(**settings: float) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(AdversarialConfig(base_channels=8, **settings))  # type: ignore[arg-type]


def test_prefix_weight_is_the_papers_sigmoid() -> None:
    config = AdversarialConfig(eta=0.05)
    keep = torch.tensor([1, 128, 256])
    expected = [1 / (1 + math.exp(-0.05 * (k - 128))) for k in keep.tolist()]
    torch.testing.assert_close(prefix_weights(config, keep, 256), torch.tensor(expected))
    assert prefix_weights(AdversarialConfig(prefix_weight=False), keep, 256).tolist() == [1, 1, 1]


def test_ramp() -> None:
    config = AdversarialConfig(start_step=10, ramp_steps=4)
    assert [ramp(config, step) for step in (9, 10, 11, 13, 14, 99)] == [0, 0.25, 0.5, 1, 1, 1]
    assert ramp(AdversarialConfig(), 0) == 1


def test_hinge_losses_in_closed_form() -> None:
    real, fake = torch.tensor([2.0, 0.0]).view(2, 1, 1, 1), torch.tensor([-3.0, 1.0]).view(2, 1, 1, 1)
    weights = torch.tensor([1.0, 0.5])
    assert float(hinge_discriminator(real, fake, weights)) == pytest.approx((0 + 1) / 2 + (0 + 0.5 * 2) / 2)
    assert float(hinge_generator(fake, weights)) == pytest.approx(-(-3 + 0.5) / 2)


def test_adaptive_weight_equals_the_gradients_and_has_a_floor() -> None:
    last = nn.Parameter(torch.tensor([3.0, 4.0]))
    rec, adv = last.square().sum(), 0.5 * last.sum()  # gradients (6, 8) and (0.5, 0.5)
    assert float(adaptive_weight(rec, adv, last)) == pytest.approx(10 / math.sqrt(0.5))
    assert float(adaptive_weight(rec, 0.0 * last.sum(), last)) == pytest.approx(1e4)  # 10 / 1e-4 is above the ceiling
    assert not adaptive_weight(rec, adv, last).requires_grad
    # Weights in half precision, where the gradients alone would be rounded to multiples of 6e-8.
    half = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float16))
    ratio = adaptive_weight(1e-7 * half.float().square().sum(), 1e-3 * half.float().sum(), half)
    assert float(ratio) == pytest.approx(1e-6 / math.sqrt(2e-6), rel=2e-3)


def test_r1_is_the_squared_gradient_on_real_images() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 1, bias=False))
    x = torch.randn(5, 3, 2, 2)
    penalty = r1_penalty(linear, x)
    weight = linear[1].weight
    torch.testing.assert_close(penalty, weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_lecam_holds_logits_near_the_other_sides_average() -> None:
    model = discriminator()
    real, fake = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), -1.0)
    assert float(lecam(model, real, fake)) == pytest.approx(9 + 1)
    for _ in range(2000):
        model.note(real, fake)
    assert float(model.real_mean) == pytest.approx(3, rel=1e-4)
    assert float(lecam(model, real, fake)) == pytest.approx(16 + 16, rel=1e-3)
    assert float(lecam(model, fake, real)) == 0.0


def test_an_image_is_judged_whatever_its_batch() -> None:
    model, x = discriminator(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=1e-5)
        assert model(x).shape[1] == 1
        assert model(x.bfloat16().float()).dtype == torch.float32


def test_each_side_learns_from_its_own_terms_only(tmp_path: Path) -> None:
    task = TokenizerTask(recipe(tmp_path, 2, "objective.adversarial.r1=1", "objective.adversarial.lecam=0.1"))
    task.start()
    batch = next(task.batches(0, 0, 1))
    terms = task.losses("tokenizer", task.models, batch, 0, part=0).terms
    assert "adversarial" in terms
    sum(terms.values()).backward()  # type: ignore[union-attr]
    judge = task.models["discriminator"]
    assert all(p.grad is None for p in judge.parameters())
    decoder = [p.grad.clone() for p in task.tokenizer.decoder.parameters() if p.grad is not None]
    losses = task.losses("discriminator", task.models, batch, 0, part=0)
    terms, figures = losses.terms, losses.figures()
    assert terms.keys() == {"discriminator", "r1", "lecam"}
    assert figures.keys() == {"logit_real", "logit_fake"}
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in judge.parameters())
    after = [p.grad for p in task.tokenizer.decoder.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(decoder, after, strict=True))


def test_nothing_changes_before_the_game_begins(tmp_path: Path) -> None:
    def weights(name: str, *more: str) -> dict[str, torch.Tensor]:
        config = recipe(tmp_path / name, 3, "objective.adversarial.start_step=3", *more)
        if name == "without":
            config = replace(config, objective=replace(config.objective, adversarial=None))
        Engine(TokenizerTask(config), config.train, config).fit()
        return load_file(tmp_path / name / "final/model.safetensors")

    with_game, without = weights("with"), weights("without")
    assert all(torch.equal(with_game[name], without[name]) for name in without)


def test_resumed_equals_uninterrupted_with_a_discriminator(tmp_path: Path) -> None:
    settings = ("objective.adversarial.start_step=1", "objective.adversarial.ramp_steps=3", "train.checkpoint_every=1",
                "objective.adversarial.lecam=0.1", "train.ema=0.5")  # fmt: skip

    class StopAt(TokenizerTask):
        def losses(self, name, models, batch, step, rank):  # type: ignore[no-untyped-def]
            if step == 3:
                raise KeyboardInterrupt
            return super().losses(name, models, batch, step, rank)

    def fit(name: str, task: type[TokenizerTask], *more: str) -> None:
        config = recipe(tmp_path / name, 5, *settings, *more)
        Engine(task(config), config.train, config).fit()

    fit("whole", TokenizerTask)
    with pytest.raises(KeyboardInterrupt):
        fit("broken", StopAt)
    fit("broken", TokenizerTask, "train.resume=true")
    whole, broken = (load_file(tmp_path / name / "final/model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    lines = [line for line in read_metrics(tmp_path / "whole") if line["kind"] == "train"]
    assert ["adversarial" in line for line in lines] == [False, True, True, True, True]
    assert ["discriminator" in line for line in lines] == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("layers", "widths"),
    [(1, (3, 8, 16, 1)), (3, (3, 8, 16, 32, 64, 1)), (5, (3, 8, 16, 32, 64, 64, 64, 1))],
)
def test_the_discriminator_is_the_patchgan_of_its_paper(layers: int, widths: tuple[int, ...]) -> None:
    """Isola et al. 2017, appendix: 4 x 4 convolutions, halving but for the last two, at most 8 times as wide."""
    model = PatchDiscriminator(AdversarialConfig(layers=layers, base_channels=8))
    convolutions = [m for m in model.layers if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == list(pairwise(widths))
    assert {(m.kernel_size, m.padding) for m in convolutions} == {((4, 4), (1, 1))}
    assert [m.stride[0] for m in convolutions] == [2] * layers + [1, 1]
    assert [m.bias is not None for m in convolutions] == [True, *[False] * layers, True]  # a norm has one of its own
    assert {m.negative_slope for m in model.layers if isinstance(m, nn.LeakyReLU)} == {0.2}
    assert sum(isinstance(m, nn.GroupNorm) for m in model.layers) == layers


def test_the_adaptive_weight_has_a_floor_below_it() -> None:
    weight = torch.ones(4, requires_grad=True)
    reconstruction, adversarial = weight.sum(), 1e-6 * weight.sum()
    # Norms 2 and 2e-6; the second counts as 1e-4 at least, and the ratio as 1e4 at most.
    assert adaptive_weight(0.3 * reconstruction, adversarial, weight).item() == pytest.approx(0.6 / SMALLEST_GRADIENT)
    assert adaptive_weight(reconstruction, adversarial, weight).item() == LARGEST_ADAPTIVE
