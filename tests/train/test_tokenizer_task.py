"""What a tokenizer's training says of its codebook: use on distinct pictures, and alarms."""

import math
from pathlib import Path

import pytest
from tests.train.runs import recipe

from channelvq.data.stream import fixed_images
from channelvq.train import tokenizer_task
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.tokenizer_task import TokenizerTask


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


def test_decay_spares_the_codebook_and_nothing_else(tmp_path: Path) -> None:
    """Decay would pull codewords that nothing uses to zero, where the first winner takes all."""
    task = TokenizerTask(recipe(tmp_path, "train.weight_decay=0.3"))
    spared = {id(p) for group in task.optimizers["tokenizer"].param_groups if not group["weight_decay"]
              for p in group["params"]}  # fmt: skip
    assert spared == {id(p) for p in task.tokenizer.quantizer.parameters()}
    decayed = [group for group in task.optimizers["tokenizer"].param_groups if group["weight_decay"] == 0.3]
    networks = (*task.tokenizer.encoder.parameters(), *task.tokenizer.decoder.parameters())
    assert {id(p) for group in decayed for p in group["params"]} == {id(p) for p in networks}


def test_weights_of_the_objective_scale_their_terms(tmp_path: Path) -> None:
    def terms(*settings: str) -> dict[str, float]:
        task = TokenizerTask(recipe(tmp_path, *settings))
        task.start()
        batch = next(task.batches(0, 0, 1))
        losses = task.losses("tokenizer", task.models, batch, 0, 0)
        return {name: term.item() for name, term in losses.terms.items()}

    plain = terms()
    weighted = terms("objective.quantizer_weight=8", "objective.pixel_weight=0.5")
    assert set(plain) == {"pixel", "codebook", "commitment"}
    assert weighted == pytest.approx(
        {"pixel": 0.5 * plain["pixel"], "codebook": 8 * plain["codebook"], "commitment": 8 * plain["commitment"]}
    )


def test_the_adversarial_term_follows_its_ramp(tmp_path: Path) -> None:
    settings = ("objective.adversarial.start_step=2", "objective.adversarial.ramp_steps=4",
                "objective.adversarial.adaptive=false", "objective.adversarial.weight=3", "nested.alpha=0")  # fmt: skip
    task = TokenizerTask(recipe(tmp_path, *settings))
    task.start()
    batch = next(task.batches(0, 0, 1))
    at = {step: task.losses("tokenizer", task.models, batch, step, 0).terms for step in (1, 2, 3, 5, 9)}
    assert "adversarial" not in at[1]
    full = at[9]["adversarial"].item()
    assert [at[step]["adversarial"].item() / full for step in (2, 3, 5)] == pytest.approx([0.25, 0.5, 1.0])
