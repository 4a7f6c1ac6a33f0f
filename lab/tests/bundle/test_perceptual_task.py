"""Training the perceptual network: its loss, the cross-style test, and that its recipe learns."""

import math
from pathlib import Path

import pytest
import torch

from channelvq.data.fetched.packages import find_package
from channelvq.errors import InputError
from channelvq.nn.perceptual import PerceptualNetwork
from channelvq.train.plan import Machine, plan
from channelvq.train.run import load_recipe, train
from lab.bundle.cross_style import cross_style_accuracy, pixels_16, style_pictures
from lab.bundle.perceptual_task import PerceptualRecipe, contrastive_loss

RECIPE = Path(__file__).parents[2] / "bundle/perceptual.yaml"
HAS_EMOJI = all(find_package(name) for name in ("fluent-emoji", "noto", "twemoji", "emojibase-data"))
needs_emoji = pytest.mark.skipif(not HAS_EMOJI, reason="emoji packages not in the cache")


def test_contrastive_loss_in_closed_form() -> None:
    eye = torch.eye(4)
    loss, matched = contrastive_loss(eye, eye, temperature=0.5)
    assert float(loss) == pytest.approx(math.log(math.exp(2) + 3) - 2)
    assert float(matched) == 1
    _, crossed = contrastive_loss(eye, eye.roll(1, 0), temperature=0.5)
    assert float(crossed) == 0


def test_the_same_pictures_are_found_and_noise_is_not() -> None:
    images = torch.randint(0, 256, (50, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    other = torch.randint(0, 256, (50, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert cross_style_accuracy(pixels_16, {"fluent": images, "noto": images}, 50)["mean"] == 1
    assert cross_style_accuracy(pixels_16, {"fluent": images, "noto": other}, 50)["mean"] < 0.2


@needs_emoji
def test_held_out_labels_come_first_and_pixels_reach_what_is_known() -> None:
    pictures, queries = style_pictures("test")
    assert {images.shape for images in pictures.values()} == {(400, 3, 64, 64)}
    assert 100 < queries < 400
    found = cross_style_accuracy(pixels_16, pictures, queries)
    assert len(found) == 7
    assert found["fluent twemoji"] == pytest.approx(0.352, abs=0.01)  # the 0.35 that others found for pixels


@needs_emoji
def test_the_recipe_learns(tmp_path: Path) -> None:
    tiny = ["train.steps=40", "train.batch_size=16", "image_size=32", "model.widths=[8,16,32]", "train.warmup_steps=5",
            "train.device=cpu", "train.evaluate_every=40", "train.ema=0.5", f"train.output_dir={tmp_path}"]  # fmt: skip
    figures = train(load_recipe(RECIPE, tiny))
    assert figures is not None
    assert figures["cross_style"] > 0.05  # of 400; by chance 0.0025
    assert isinstance(PerceptualNetwork.load(tmp_path / "final"), PerceptualNetwork)


def test_what_makes_no_sense_for_it_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE, ["train.accumulation=2", f"train.output_dir={tmp_path}"], of=PerceptualRecipe)
    with pytest.raises(InputError, match="contrastive loss compares all labels of a batch"):
        train(recipe)
    with pytest.raises(InputError, match="there is nothing to plan"):
        plan("x", recipe, Machine())
