"""What a tokenizer's training says of its codebook: use on distinct pictures, and alarms."""

import math
from pathlib import Path

import pytest

from channelvq.data.stream import fixed_images
from channelvq.train import tokenizer_task
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

TINY = (
    "model.image_size=32", "model.latent_channels=8", "model.network.base_channels=8", "model.network.stem=2",
    "model.quantizer.codebook_size=32", "data.validation_images=16", "objective.start_images=32",
    "train.batch_size=4", "train.log_every=1", "train.device=cpu", "train.ema=0.9",
)  # fmt: skip


def recipe(folder: Path, *overrides: str) -> TokenizerRecipe:
    return load_recipe("small/smoke", [*TINY, f"train.output_dir={folder}", *overrides], of=TokenizerRecipe)


def test_pictures_that_come_again_use_no_more_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small set of own images fills the validation images by repeating them."""
    monkeypatch.setattr(tokenizer_task, "fixed_images", lambda mixture, n: fixed_images(mixture, 2).repeat(3, 1, 1, 1))
    task = TokenizerTask(recipe(tmp_path))
    task.start()
    (tmp_path / "samples").mkdir()
    found = task.evaluate(task.models, tmp_path, 1)
    tokens, codes = 2 * task.tokenizer.num_tokens, task.tokenizer.codebook_size
    assert found["use_if_uniform"] == pytest.approx(1 - math.exp(-tokens / codes))


def test_a_failing_codebook_is_told_once_with_its_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(TokenizerTask):
        def evaluate(self, models, run_dir, step):  # type: ignore[no-untyped-def]
            return {"use": 1 / 32 if step > 1 else 1.0, "perplexity": 1.0 if step > 1 else 30.0, "use_if_uniform": 1.0}

    config = recipe(tmp_path, "train.steps=4", "train.evaluate_every=1")
    assert Engine(Failing(config), config.train, config).fit() is not None
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("collapsed codebook") == 1
    assert text.index("evaluate step 2") < text.index("collapsed codebook") < text.index("evaluate step 3")
    assert "model.quantizer.start=data" in text
    assert all(line["kind"] in ("train", "evaluate") for line in read_metrics(tmp_path))
