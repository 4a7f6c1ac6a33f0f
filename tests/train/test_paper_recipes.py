"""Every recipe of the paper trains: three steps at a small width and size, on scenes that our code draws.

Their plans at full size are in test_plan.py.
"""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from channelvq import CVQTokenizer
from channelvq.config import recipe_names
from channelvq.nn.conv import ConvConfig
from channelvq.nn.perceptual import PerceptualConfig, PerceptualNetwork
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig
from channelvq.train.car_task import CARRecipe, CARTask
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

PAPER = [name for name in recipe_names() if name.startswith("paper/")]
SHORT = (
    "data.sources.scenes={kind: scenes, sprites: shapes}", "data.validation_images=4", "train.steps=3",
    "train.batch_size=4", "train.warmup_steps=0", "train.precision=no", "train.device=cpu", "train.data_workers=0",
    "train.log_every=1", "train.evaluate_every=3", "train.checkpoint_every=3",
)  # fmt: skip
TOKENIZER = (
    "model.image_size=64", "model.latent_channels=8",
    "model.quantizer.codebook_size=16", "objective.start_images=8", "objective.adversarial.base_channels=8",
)  # fmt: skip
CONV = ("model.network.base_channels=8", "model.network.num_blocks=1")
VIT = (
    "model.network.patch_size=8", "model.network.hidden_size=32", "model.network.intermediate_size=48",
    "model.network.num_heads=2", "model.network.num_layers=2", "model.network.decoder.base_channels=8",
    "model.network.decoder.num_blocks=1", "model.network.decoder.multipliers=[1,1,2,2]",
)  # fmt: skip
CAR = (
    "model.max_text_tokens=40", "objective.stage1_steps=1", "objective.train_images=8",
    "model.backbone={hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2, "
    "intermediate_size: 48}",
)  # fmt: skip


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the place of LPIPS, whose weights are not in the package."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("features")
    PerceptualNetwork(PerceptualConfig(widths=(4, 8, 8), embedding=6)).save(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the place of the one that paper/cvq-16k-256 trains."""
    torch.manual_seed(0)
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=4)
    made = CVQTokenizer(CVQConfig(32, 6, network=network, quantizer=PlainConfig(codebook_size=16))).eval()
    with torch.no_grad():
        made.quantizer.start_from(made.encoder(torch.rand(8, 3, 32, 32)), torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(folder)
    return folder


def note_gradients(models: dict[str, nn.Module]) -> set[str]:
    """Names of the trained parameters that have had no gradient yet; the set shrinks while they train."""
    silent = set()
    for model_name, model in models.items():
        for name, parameter in model.named_parameters():
            # A softmax over keys does not see what is added to all of them: the gradient is zero, but for rounding.
            if parameter.requires_grad and not name.endswith("k_proj.bias"):
                key = f"{model_name}.{name}"
                silent.add(key)
                parameter.register_post_accumulate_grad_hook(
                    lambda p, key=key: silent.discard(key) if p.grad is not None and p.grad.any() else None
                )
    return silent


def test_the_table_of_the_paper_is_there() -> None:
    assert {"cvq-16k-256", "cvq-65k", "cvq-1024tok", "cvq-vit", "cvq-simvq", "cvq-ibq", "cvq-nested-25",
            "cvq-nested-50", "vqgan-16k", "vqgan-lc", "simvq", "ibq", "car-4b", "car-8b", "car-imagenet-256",
            "cvq-any-size"} <= {
        name.removeprefix("paper/") for name in PAPER
    }  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_three_steps(
    name: str, features: Path, tokenizer: Path, siglip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    full = load_recipe(name)
    absent = [f"data.sources.{source}.weight=0" for source in full.data.sources]  # pictures that are not here
    given = [*SHORT, *absent, f"train.output_dir={tmp_path / 'run'}"]
    if isinstance(full, CARRecipe):
        recipe = load_recipe(name, [*given, *CAR, f"tokenizer={tokenizer}"])
        assert isinstance(recipe, CARRecipe)
        task: CARTask | TokenizerTask = CARTask(recipe)
    else:
        assert isinstance(full, TokenizerRecipe)
        given += [*TOKENIZER, f"objective.perceptual.network={features}"]
        if full.sizes:
            given += ["sizes=[[64, 64]]", "growth=[{from_step: 1, sizes: [[128, 128], [96, 128]]}]"]  # not 1,024 px
        if full.model.network.kind == "vit":
            given += [*VIT, f"model.network.weights={siglip_folder}", f"objective.semantic.teacher={siglip_folder}"]
        else:
            given += CONV
        recipe = load_recipe(name, given)
        assert isinstance(recipe, TokenizerRecipe)
        task = TokenizerTask(recipe)
    silent = note_gradients(task.models)
    assert silent
    assert Engine(task, recipe.train, recipe).fit() is not None
    assert silent == set()
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3]
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    wanted = {"nats"} if isinstance(full, CARRecipe) else {"pixel", "perceptual", "adversarial", "discriminator"}
    wanted |= {"semantic"} if isinstance(full, TokenizerRecipe) and full.objective.semantic else set()
    assert wanted <= {key for line in lines for key in line}
