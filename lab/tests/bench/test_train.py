"""The training bench at a size that takes a moment; no speed is asserted."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from channelvq.train import launch
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.bench.train import CASES, build, plain_loop, run, shown, started

NARROW = (
    "model.latent_channels=4", "model.network.base_channels=8", "model.network.num_blocks=1",
    "model.quantizer.codebook_size=16", "train.batch_size=2", "objective.start_images=8",
)  # fmt: skip
TINY = ("model.image_size=32", *NARROW)
TINY_GENERATOR = (
    "train.batch_size=2", "objective.train_images=8", "objective.text_vocab_size=300", "model.max_text_tokens=64",
    "model.backbone.hidden_size=32", "model.backbone.num_hidden_layers=1", "model.backbone.num_attention_heads=2",
)  # fmt: skip
TINY_PAPER = ("model.image_size=64", "objective.adversarial.base_channels=8", *NARROW)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_every_case_is_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(launch, "compile_networks", partial(launch.compile_networks, backend="aot_eager"))
    result = run(2, tmp_path / "train.json", TINY, TINY_PAPER, TINY_GENERATOR)
    stored = json.loads((tmp_path / "train.json").read_text())
    assert [r["case"] for r in stored["records"]] == [*CASES, "quantizer of paper/cvq-16k-256", "generator, compiled"]
    assert {row[3].split(", ")[1] for row in shown(stored).rows} == {"plain loop", "quantizer alone", "not compiled"}
    assert all(0 < r.get("ratio", r.get("share")) < 100 for r in stored["records"])
    assert result["protocol"]["rounds"] == 2


@pytest.mark.parametrize("case", CASES)
def test_the_plain_loop_does_the_work_of_the_engine(case: str, tmp_path: Path) -> None:
    name, settings = CASES[case]
    recipe = load_recipe(name, [*settings, *TINY, "train.precision=no", "train.warmup_steps=0"], of=TokenizerRecipe)
    engine, batch = build(recipe, tmp_path)
    twin = started(recipe)
    plain = plain_loop(twin)
    before = twin.tokenizer.decoder.last_weight.clone()
    for step in range(3):
        engine.step(batch, step)
        plain(batch, step)
    for key, model in engine.task.models.items():
        for (path, ours), theirs in zip(model.named_parameters(), twin.models[key].parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=lambda m, p=path: f"{p}: {m}")
    assert not torch.allclose(twin.tokenizer.decoder.last_weight, before, atol=1e-4)
