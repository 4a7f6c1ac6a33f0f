"""Training at several sizes: what is learnt, what is measured, and which recipes are refused."""

from pathlib import Path

import pytest
import torch
from tests.train.runs import assert_equal, everything

from channelvq import CVQTokenizer
from channelvq.errors import InputError
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.plan import Machine, Plan, plan
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

TINY = (
    "model.image_size=32", "model.latent_channels=8", "model.network.base_channels=8", "model.network.stem=4",
    "model.quantizer.codebook_size=32", "model.resampler.width=16", "data.validation_images=8",
    "objective.start_images=32", "train.batch_size=4", "train.log_every=1", "train.device=cpu", "train.warmup_steps=1",
    "sizes=[[32, 32], [48, 48], [32, 64]]",
)  # fmt: skip


def recipe(folder: Path, *overrides: str) -> TokenizerRecipe:
    return load_recipe("small/any-size", [*TINY, f"train.output_dir={folder}", *overrides], of=TokenizerRecipe)


def fit(config: TokenizerRecipe) -> dict[str, float]:
    figures = Engine(TokenizerTask(config), config.train, config).fit()
    assert figures is not None
    return figures


def test_the_resampler_learns_and_every_size_is_measured(tmp_path: Path) -> None:
    config = recipe(tmp_path / "run", "train.steps=6")
    first = CVQTokenizer(config.model).state_dict()
    figures = fit(config)
    assert {"psnr_32x32", "psnr_48x48", "psnr_32x64"} <= figures.keys()
    assert figures["psnr_32x32"] == figures["psnr_8"]  # home, all tokens
    tok = CVQTokenizer.from_pretrained(tmp_path / "run/final")
    for name in ("gather_residual.out.weight", "spread_residual.out.weight"):
        assert not first[f"resampler.{name}"].any()
        assert tok.state_dict()[f"resampler.{name}"].any()
    ids = tok.tokenize([torch.zeros(3, 48, 48), torch.zeros(3, 30, 61)])
    assert tok.detokenize(ids, "tensor", size=(48, 48)).shape == (2, 3, 48, 48)


def test_a_step_at_home_leaves_the_resampler_alone(tmp_path: Path) -> None:
    config = recipe(tmp_path / "run", "train.steps=1")
    fit(config)
    state = CVQTokenizer.from_pretrained(tmp_path / "run/final").state_dict()
    assert not state["resampler.spread_residual.out.weight"].any()


def test_a_batch_in_parts_is_the_batch(tmp_path: Path) -> None:
    """The quantizer surveys maps of the home size, whatever the size of the images."""
    runs = [recipe(tmp_path / str(parts), "train.steps=4", "nested.alpha=0", f"train.accumulation={parts}")
            for parts in (1, 2)]  # fmt: skip
    for run in runs:
        fit(run)
    whole, parts = ([line["pixel"] for line in read_metrics(run.train.output_dir) if "pixel" in line] for run in runs)
    assert parts == pytest.approx(whole, rel=1e-3)
    assert len(parts) == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.resampler=null", "sizes: a model of one size cannot train at several; set model.resampler"),
        ("train.compile=true", "sizes: compiled networks are of one size; set train.compile=false"),
        ("sizes=[[32, 37]]", r"sizes: \[32, 37\] must be multiples of 4, .*the nearest is \[32, 36\]"),
        ("sizes=[[512, 512]]", r"at most 16384 pixels \(model.resampler.max_pixels\); the nearest is \[128, 128\]"),
        ("sizes=[]", "sizes: .*at least 1 item"),
        ("sizes=[[32, 0]]", "sizes.0.1: .*greater than 0"),
        ("sizes=[32, 48]", "sizes.0: "),
        ("growth=[{from_step: 3, sizes: [[32, 37]]}]", r"sizes: \[32, 37\] must be multiples of 4"),
        (
            "growth=[{from_step: 3, sizes: [[32, 32]]}, {from_step: 3, sizes: [[48, 48]]}]",
            r"from_step \[3, 3\] must rise",
        ),
        ("growth=[{from_step: 700, sizes: [[32, 32]]}]", r"from_step \[700\] must .* stay below train.steps 700"),
        ("growth=[{from_step: 0, sizes: [[32, 32]]}]", "growth.0.from_step: .*greater than 0"),
        ("growth=[{from_step: 3}]", "growth.0.sizes"),
    ],
)
def test_sizes_that_cannot_be_trained_at_are_named(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        recipe(tmp_path, override)


def test_without_sizes_nothing_of_a_training_changes(tmp_path: Path) -> None:
    plain = load_recipe("small/smoke", [f"train.output_dir={tmp_path}"], of=TokenizerRecipe)
    task = TokenizerTask(load_recipe("small/smoke", ["data.validation_images=4"], of=TokenizerRecipe))
    assert plain.sizes is None
    assert task.training is task.data
    assert not task.idle_parameters
    assert task.held_out_at == {}


def test_a_plan_is_of_the_sizes_that_are_trained_at(tmp_path: Path) -> None:
    def planned(sizes: str) -> Plan:
        return plan("tiny", recipe(tmp_path, f"sizes={sizes}"), Machine())

    home, double, both = (planned(sizes) for sizes in ("null", "[[64, 32]]", "[[32, 32], [64, 32]]"))
    assert 1.7 * home.forward_flops < double.forward_flops < 2.5 * home.forward_flops
    assert both.forward_flops == pytest.approx((home.forward_flops + double.forward_flops) / 2)
    assert both.memory == double.memory


GROWTH = "growth=[{from_step: 2, sizes: [[48, 48]]}, {from_step: 4, sizes: [[32, 32], [32, 64]]}]"


class StopAt(TokenizerTask):
    def losses(self, name, models, batch, step, part):  # type: ignore[no-untyped-def]
        self.seen = [*getattr(self, "seen", []), tuple(batch.shape[2:])]
        if step == 5:
            raise KeyboardInterrupt
        return super().losses(name, models, batch, step, part)


def test_sizes_grow_and_a_stopped_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    grown = ("sizes=[[32, 32]]", GROWTH, "train.steps=7", "train.checkpoint_every=3")
    figures = fit(recipe(tmp_path / "whole", *grown))
    assert {"psnr_32x32", "psnr_48x48", "psnr_32x64"} <= figures.keys()
    parts = recipe(tmp_path / "parts", *grown)
    task = StopAt(parts)
    with pytest.raises(KeyboardInterrupt):
        Engine(task, parts.train, parts).fit()
    assert task.seen == [(32, 32), (32, 32), (48, 48), (48, 48), (32, 32), (32, 64)]
    fit(recipe(tmp_path / "parts", *grown, "train.resume=true"))
    assert_equal(everything(tmp_path / "whole"), everything(tmp_path / "parts"))


def test_a_plan_counts_each_size_by_its_steps(tmp_path: Path) -> None:
    def planned(*overrides: str) -> Plan:
        return plan("tiny", recipe(tmp_path, "train.steps=8", *overrides), Machine())

    home, wide = planned("sizes=null"), planned("sizes=[[64, 32]]")
    grown = planned("sizes=[[32, 32]]", "growth=[{from_step: 4, sizes: [[32, 32], [64, 32]]}]")
    assert grown.forward_flops == pytest.approx(0.75 * home.forward_flops + 0.25 * wide.forward_flops)
    assert grown.memory == wide.memory
    with pytest.raises(InputError, match=r"growth: give sizes too"):
        planned("sizes=null", GROWTH)
