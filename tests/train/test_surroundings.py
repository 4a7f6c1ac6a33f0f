"""A run is decided by its recipe alone, not by what the process or its environment has set."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from channelvq.errors import InputError
from channelvq.train.run import load_recipe, train
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

TINY = (
    "model.image_size=32", "model.latent_channels=8", "model.network.base_channels=8", "model.network.stem=2",
    "model.quantizer.codebook_size=32", "data.validation_images=8", "objective.start_images=32",
    "train.batch_size=4", "train.log_every=1", "train.device=cpu", "train.steps=3", "train.warmup_steps=0",
)  # fmt: skip


def weights(folder: Path, *settings: str) -> dict[str, torch.Tensor]:
    recipe = load_recipe("small/smoke", [*TINY, *settings, f"train.output_dir={folder}"], of=TokenizerRecipe)
    train(recipe)
    return load_file(folder / "final" / "model.safetensors")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return weights(tmp_path_factory.mktemp("expected") / "run")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER"),
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
    ],
)
def test_environment_of_accelerate_changes_nothing(
    expected: dict[str, torch.Tensor], variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert_same(weights(tmp_path / "run"), expected)


def test_a_run_inside_of_an_autocast_is_refused(tmp_path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match=r"within torch\.autocast"):
        weights(tmp_path / "run")


def test_each_step_in_bfloat16_sees_the_weights_of_the_step_before(tmp_path: Path) -> None:
    """Torch keeps cast weights as long as any autocast is on; a resumed run begins without them."""
    settings = ("train.precision=bf16", "train.steps=4", "train.checkpoint_every=2")
    whole = weights(tmp_path / "whole", *settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for name in ("checkpoints/step-00000004", "final"):
        shutil.rmtree(tmp_path / "parts" / name)
    assert_same(weights(tmp_path / "parts", *settings, "train.resume=true"), whole)


def test_another_default_dtype_is_refused(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(InputError, match=r"default dtype is torch\.float64, expected float32"):
            weights(tmp_path / "run")
    finally:
        torch.set_default_dtype(torch.float32)


def test_threads_of_a_run_are_its_own(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    weights(tmp_path / "run", f"train.threads={before + 1}")
    assert torch.get_num_threads() == before


def test_a_run_after_one_that_broke_under_autocast_is_the_same(
    expected: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTask, "losses", broken)
        with pytest.raises(MemoryError):
            weights(tmp_path / "broken", "train.precision=bf16")
    assert not torch.is_autocast_enabled("cpu")
    assert_same(weights(tmp_path / "run"), expected)
