"""A batch worked through in parts gives the same result as at once: the contract's tolerance, adaptive weight off."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from channelvq.errors import InputError
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

TINY = (
    "model.image_size=32", "model.latent_channels=8", "model.network.base_channels=8", "model.network.stem=2",
    "model.quantizer.codebook_size=32", "data.validation_images=8", "objective.start_images=32",
    "train.batch_size=8", "train.log_every=1", "train.device=cpu", "train.steps=4", "train.precision=no",
    "nested.alpha=0.5", "train.warmup_steps=0", "train.learning_rate=5e-5",
)  # fmt: skip
GAME = (
    "objective.adversarial={adaptive: false, start_step: 1, ramp_steps: 2, base_channels: 8, r1: 0.1, lecam: 0.1}",
)  # fmt: skip


def fit(folder: Path, *settings: str) -> dict[str, Tensor]:
    """Weights and buffers of every model in the last checkpoint."""
    recipe = load_recipe("small/smoke", [*TINY, *settings, f"train.output_dir={folder}"], of=TokenizerRecipe)
    assert Engine(TokenizerTask(recipe), recipe.train, recipe).fit() is not None
    (last,) = (folder / "checkpoints").glob("step-00000004")
    return {f"{path.stem}.{k}": v for path in last.glob("*.safetensors") for k, v in load_file(path).items()}


@pytest.mark.parametrize(
    "settings",
    [
        (),
        (*GAME, "train.ema=0.9", "nested.policy=batch"),
        ("model.quantizer.kind=ema", "model.quantizer.revive_after=0.5"),
        ("model.quantizer.kind=ibq",),
        ("model.quantizer.kind=lfq", "objective.start_step=2"),
    ],
    ids=["plain", "game", "ema", "ibq", "lfq"],
)
def test_parts_equal_the_whole(settings: tuple[str, ...], tmp_path: Path) -> None:
    """To 2e-6 where four steps of AdamW move a weight by up to 2e-4.

    AdamW makes of a gradient near zero, which is rounding alone, a step of the same size: on a processor with AVX2 one
    weight in some thousands differs by 1.3e-6.
    """
    whole = fit(tmp_path / "whole", *settings)
    parts = fit(tmp_path / "parts", *settings, "train.accumulation=4")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    left_out = ("images_per_second", "psnr", "batch_use", "kind")  # speed, and what is no mean over the images
    for a, b in zip(read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts"), strict=True):
        kept = {key: value for key, value in a.items() if key not in left_out}
        assert {key: b[key] for key in kept} == pytest.approx(kept, rel=1e-3, abs=1e-5)


def test_without_the_survey_a_quantizer_of_the_whole_batch_would_differ(tmp_path: Path) -> None:
    """The test above can fail: moving averages by parts are not those of the batch."""
    from contextlib import nullcontext

    class Blind(TokenizerTask):
        def survey(self, parts, step, first):  # type: ignore[no-untyped-def]
            return nullcontext()

    settings = [*TINY, "model.quantizer.kind=ema", f"train.output_dir={tmp_path / 'blind'}", "train.accumulation=4"]
    recipe = load_recipe("small/smoke", settings, of=TokenizerRecipe)
    assert Engine(Blind(recipe), recipe.train, recipe).fit() is not None
    blind = load_file(tmp_path / "blind/final/model.safetensors")["quantizer.quantizer.weight"]
    whole = fit(tmp_path / "whole", "model.quantizer.kind=ema")["model.quantizer.quantizer.weight"]
    assert not torch.allclose(blind, whole, atol=1e-4)


def test_a_batch_that_does_not_split_evenly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"batch_size 8 .* 1 ranks x 3 parts"):
        fit(tmp_path, "train.accumulation=3")
