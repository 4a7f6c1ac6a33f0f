"""Every kind of quantizer through the recipes, the generator and the plan."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from channelvq import CAR, CVQTokenizer
from channelvq.car.config import CARConfig
from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.errors import InputError
from channelvq.train import run, tokenizer_task
from channelvq.train.run import load_recipe, train
from channelvq.train.tokenizer_task import TokenizerRecipe

KINDS = ("ema", "simvq", "simvq-tokenwise", "simvq-residual", "ibq", "lc", "fsq", "lfq")
TINY = (
    "model.image_size=32", "model.latent_channels=8", "model.network.base_channels=8",
    "model.quantizer.codebook_size=32", "data.validation_images=8", "objective.start_images=8", "train.batch_size=4",
    "train.checkpoint_every=2", "train.device=cpu", "train.precision=no",
)  # fmt: skip


def fit(kind: str, folder: Path, steps: int, *more: str) -> dict[str, torch.Tensor]:
    settings = [*TINY, f"model.quantizer.kind={kind}", f"train.output_dir={folder}", f"train.steps={steps}", *more]
    figures = train(load_recipe("small/smoke", settings, of=TokenizerRecipe))
    assert figures is not None
    assert figures["use"] > 0.1
    return load_file(folder / "final" / "model.safetensors")


@pytest.mark.parametrize("kind", ["ema", "ibq"])  # those with state beside parameters
def test_a_resumed_run_ends_equal_to_the_bit(kind: str, tmp_path: Path) -> None:
    whole = fit(kind, tmp_path / "whole", 4)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for name in ("checkpoints/step-00000004", "final"):
        shutil.rmtree(tmp_path / "parts" / name)
    parts = fit(kind, tmp_path / "parts", 4, "train.resume=true")
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_trains_what_a_generator_reads(kind: str, tmp_path: Path) -> None:
    first, last = fit(kind, tmp_path / "one", 1), fit(kind, tmp_path / "two", 2)
    moved = {name for name, tensor in last.items() if not torch.equal(tensor, first[name])}
    assert {name for name in last if name.startswith("quantizer.quantizer") and name in moved}
    tokenizer = CVQTokenizer.from_pretrained(tmp_path / "two" / "final")
    backbone = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = TextTokenizer(train_bpe(["a red cube", "a blue ball"], 300))
    car = CAR(CARConfig(backbone=backbone, max_text_tokens=16), tokenizer, text).eval()
    assert torch.equal(car.codebook, tokenizer.quantizer.codes())
    car.save_pretrained(tmp_path / "car")
    again = CAR.from_pretrained(tmp_path / "car")
    ids = car.generate(["a red cube"], guidance_scale=1.0, exact=False, num_tokens=3).ids
    assert torch.equal(again.generate(["a red cube"], guidance_scale=1.0, exact=False, num_tokens=3).ids, ids)


def test_a_setting_of_another_kind_is_named_by_its_key() -> None:
    with pytest.raises(InputError, match=r"\n  model\.quantizer\.beta: there is no such setting"):
        load_recipe("paper/cvq-16k-256", ["model.quantizer.kind=fsq"])
    with pytest.raises(InputError, match=r"\n  model\.quantizer: .*power of two"):
        load_recipe("small/smoke", ["model.quantizer.kind=lfq", "model.quantizer.codebook_size=100"])
    with pytest.raises(InputError, match=r"\n  data\.sources\.scenes\.colour: there is no such setting"):
        load_recipe("small/smoke", ["data.sources.scenes.colour=3"])


def test_where_a_run_cannot_be_written_is_told_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tokenizer_task, "TokenizerTask", lambda recipe: pytest.fail("the task was built first"))
    with pytest.raises(InputError, match="cannot write"):
        run.train(load_recipe("small/smoke", [f"train.output_dir={tmp_path / 'file'}"]))
