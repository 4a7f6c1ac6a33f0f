"""The SigLIP encoder: its layers are the checkpoint's, its tokenizer keeps every promise of the convolutional one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from channelvq import CVQTokenizer
from channelvq.errors import InputError
from channelvq.nn.conv import ConvConfig
from channelvq.nn.siglip import PUBLISHED, load_siglip, siglip_config
from channelvq.nn.vit import ViTConfig, ViTEncoder, resample_positions
from channelvq.quantize.axis import Axis
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig
from channelvq.train.plan import Machine, plan
from channelvq.train.run import load_recipe, train
from channelvq.train.tokenizer_task import TokenizerRecipe

SHAPE = {"patch_size": 8, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
DECODER = ConvConfig(stem=4, base_channels=8, multipliers=(1, 2), num_blocks=1)
TINY = (
    "model.image_size=32", "model.latent_channels=8", "model.quantizer.codebook_size=16", "train.batch_size=4",
    "model.network.hidden_size=32", "model.network.intermediate_size=48", "model.network.num_heads=2",
    "model.network.num_layers=2", "model.network.decoder.base_channels=8", "data.validation_images=8",
    "objective.start_images=16", "train.device=cpu", "train.warmup_steps=0",
)  # fmt: skip


def network(**settings: object) -> ViTConfig:
    return ViTConfig(**(SHAPE | {"num_layers": 2, "decoder": DECODER} | settings))  # type: ignore[arg-type]


def encoder(image_size: int = 32, **settings: object) -> ViTEncoder:
    torch.manual_seed(1)
    return ViTEncoder(network(**settings), 12, image_size).eval()


def images(count: int = 11, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(params=["channel", "patch"])
def tokenizer(request: pytest.FixtureRequest) -> CVQTokenizer:
    torch.manual_seed(0)
    axis: Axis = request.param
    tok = CVQTokenizer(CVQConfig(image_size=32, latent_channels=12, axis=axis, network=network(),
                                 quantizer=PlainConfig(codebook_size=40)))  # fmt: skip
    with torch.no_grad():
        tok.quantizer.start_from(tok.encoder(images(64, seed=1)), torch.Generator().manual_seed(0))
    return tok.eval()


# Weights

LAYER = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", "self_attn.k_proj", "self_attn.out_proj",
         "self_attn.q_proj", "self_attn.v_proj")  # fmt: skip
NAMES = {
    "siglip.embeddings.position_embedding.weight",
    *(f"{name}.{kind}" for kind in ("weight", "bias") for name in (
        "project", "siglip.embeddings.patch_embedding", "siglip.post_layernorm",
        *(f"siglip.encoder.layers.{i}.{part}" for i in range(2) for part in LAYER),
    )),
}  # fmt: skip


def test_names_in_our_files_are_ours_whatever_transformers_calls_them() -> None:
    """Saved tokenizers load across its versions: some have all of them below `vision_model`."""
    ours, other = encoder(), encoder()
    assert set(ours.state_dict()) == NAMES
    inner = other.siglip
    other.siglip = torch.nn.Module()
    other.siglip.vision_model = inner
    assert set(torch.nn.Sequential(other).state_dict()) == {f"0.{name}" for name in NAMES}
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1.0)
    torch.nn.Sequential(other).load_state_dict(torch.nn.Sequential(ours).state_dict())
    assert torch.equal(inner.embeddings.position_embedding.weight, ours.siglip.embeddings.position_embedding.weight)


def test_first_layers_are_the_checkpoints(siglip_folder: Path) -> None:
    ours, theirs, x = encoder(), load_siglip(str(siglip_folder)), images(2)
    fresh = ours(x)
    ours.load_weights(str(siglip_folder))
    with torch.no_grad():
        # transformers' own hidden states: the third is what two layers give.
        hidden = theirs(pixel_values=x, output_hidden_states=True).hidden_states[2]
        normed = F.layer_norm(hidden, (32,), eps=1e-6).transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(ours(x), ours.project(normed), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours(x), fresh)


def test_positions_are_resampled_for_another_size(siglip_folder: Path) -> None:
    theirs = load_siglip(str(siglip_folder)).state_dict()["embeddings.position_embedding.weight"]
    same, larger = encoder(32), encoder(64)
    for each in (same, larger):
        each.load_weights(str(siglip_folder))
    assert torch.equal(same.siglip.embeddings.position_embedding.weight, theirs)
    assert larger.siglip.embeddings.position_embedding.weight.shape == (64, 32)
    assert larger(images(1, 64)).shape == (1, 12, 8, 8)
    # A plane is a plane on every grid, apart from its borders; rows and columns stay what they are.
    plane = (torch.arange(8.0)[:, None] * 10 + torch.arange(8.0)).reshape(64, 1)
    finer = resample_positions(plane, 256).view(16, 16)
    centres = (torch.arange(16) + 0.5) / 2 - 0.5
    expected = centres[:, None] * 10 + centres
    torch.testing.assert_close(finer[4:12, 4:12], expected[4:12, 4:12], atol=1e-4, rtol=0)


def test_weights_that_cannot_be_used_are_named(siglip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hidden_size 64 \(the checkpoint's is 32\).*num_layers 4 \(the checkpoint"):
        encoder(hidden_size=64, num_layers=4).load_weights(str(siglip_folder))
    with pytest.raises(InputError, match=r"SigLIP 'nobody/siglip': no folder or hub repository"):
        encoder().load_weights("nobody/siglip")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(InputError, match="this is a qwen3, expected a siglip"):
        encoder().load_weights(str(tmp_path))
    (tmp_path / "config.json").write_text((siglip_folder / "config.json").read_text())
    state = load_file(siglip_folder / "model.safetensors")
    lost = next(name for name in state if name.endswith("layers.1.mlp.fc1.weight") and "text" not in name)
    save_file({n: t for n, t in state.items() if n != lost}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 tensor\(s\), such as .*layers\.1\.mlp\.fc1\.weight"):
        encoder().load_weights(str(tmp_path))


def test_published_shapes_need_no_files() -> None:
    for name, shape in PUBLISHED.items():
        assert siglip_config(name).num_hidden_layers == shape["num_hidden_layers"]


def test_shapes_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match=r"patch_size 16 must be the decoder's downsampling 8 \(stem 4"):
        network(patch_size=16)
    with pytest.raises(ValueError, match="must be a multiple of num_heads 5"):
        network(num_heads=5)
    with pytest.raises(ValueError, match=r"network's downsampling 8 \(patch_size 8\)"):
        CVQConfig(image_size=36, network=network())
    with pytest.raises(InputError, match=r"\n  model\.network\.stem: there is no such setting"):
        load_recipe("small/vit", ["model.network.stem=2"], of=TokenizerRecipe)
    with pytest.raises(InputError, match=r"model\.network\.kind: .*kind is conv, vit or linear"):
        load_recipe("small/vit", ["model.network.kind=cnn"], of=TokenizerRecipe)


# The tokenizer's promises


def test_ids_of_an_image_do_not_depend_on_its_batch(tokenizer: CVQTokenizer) -> None:
    x = images()
    together = tokenizer.tokenize(x)
    assert len(together.unique()) > 10
    assert torch.equal(torch.cat([tokenizer.tokenize(row[None]) for row in x]), together)
    assert torch.equal(tokenizer.tokenize(x.flip(0)).flip(0), together)
    # The feature maps themselves, where a difference in the last bit would show.
    maps = tokenizer.latents(x)
    assert torch.equal(tokenizer.latents(x.flip(0)).flip(0), maps)
    assert torch.equal(torch.cat([tokenizer.latents(row[None]) for row in x]), maps)


def test_any_prefix_decodes(tokenizer: CVQTokenizer) -> None:
    x = images(8)
    ids = tokenizer.tokenize(x)
    for k in (1, 5, tokenizer.num_tokens):
        with torch.no_grad():
            expected, _ = tokenizer(x, (torch.arange(tokenizer.num_tokens) < k).expand(8, -1))
        torch.testing.assert_close(tokenizer.detokenize(ids[:, :k], "tensor"), expected.clamp(-1, 1), rtol=0, atol=1e-5)


def test_round_trip_through_files_needs_no_checkpoint(tokenizer: CVQTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["network"]["weights"] = "nobody/siglip"  # as after training from a checkpoint that is not here
    (tmp_path / "config.json").write_text(json.dumps(settings))
    again, x = CVQTokenizer.from_pretrained(tmp_path), images()
    assert torch.equal(again.tokenize(x), tokenizer.tokenize(x))
    assert again.config.network == network(weights="nobody/siglip")


def test_every_parameter_gets_a_gradient(tokenizer: CVQTokenizer) -> None:
    tokenizer.train()
    x, generator = images(8), torch.Generator().manual_seed(0)
    with torch.no_grad():  # branches that start at zero have left it
        for parameter in tokenizer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    x_hat, quantized = tokenizer(x)
    ((x_hat - x).square().mean() + quantized.loss).backward()
    silent = {n for n, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()}
    # A softmax over keys does not see what is added to all of them: that gradient is zero, but for rounding.
    assert {name for name in silent if not name.endswith("k_proj.bias")} == set()


# Training


def test_training_starts_from_the_weights_and_learns(siglip_folder: Path, tmp_path: Path) -> None:
    settings = [*TINY, f"model.network.weights={siglip_folder}", f"train.output_dir={tmp_path}"]
    figures = train(
        load_recipe("small/vit", [*settings, "train.steps=2", "train.learning_rate=1e-6"], of=TokenizerRecipe)
    )
    assert figures is not None
    state, theirs = load_file(tmp_path / "final/model.safetensors"), load_siglip(str(siglip_folder)).state_dict()
    for name in ("embeddings.patch_embedding.weight", "encoder.layers.1.mlp.fc2.weight"):
        torch.testing.assert_close(state[f"encoder.siglip.{name}"], theirs[name], atol=1e-5, rtol=0)
    # Going on needs the checkpoint of the run, not SigLIP's.
    gone_on = [*settings, "train.steps=3", "train.learning_rate=1e-6", "train.resume=true"]
    assert train(load_recipe("small/vit", gone_on, of=TokenizerRecipe)) is not None
    elsewhere = [*TINY, "model.network.weights=nobody/siglip", f"train.output_dir={tmp_path / 'other'}"]
    missing = load_recipe("small/vit", elsewhere, of=TokenizerRecipe)
    with pytest.raises(InputError, match="nobody/siglip"):
        train(missing)


def test_a_plan_counts_encoder_head_and_frozen_teacher(siglip_folder: Path) -> None:
    without = plan("x", load_recipe("small/vit", TINY, of=TokenizerRecipe), Machine(gpus=1))
    recipe = load_recipe("small/vit", [*TINY, f"objective.semantic.teacher={siglip_folder}"], of=TokenizerRecipe)
    found = plan("x", recipe, Machine(gpus=1))
    parts = {part.name: part for part in found.parts}
    whole = sum(p.numel() for p in load_siglip(str(siglip_folder)).parameters())
    assert parts["encoder"].parameters == sum(p.numel() for p in CVQTokenizer(recipe.model).encoder.parameters())
    assert (parts["semantic teacher"].parameters, parts["semantic teacher"].trained) == (whole, False)
    head = 32 * 8 + 32 + 32 * 32 + 32
    assert parts["semantic head"].parameters == head
    assert found.memory["optimizer"] == 8 * (without.parameters + head)
    # The teacher costs one forward pass a step, the head three.
    head_flops = 2 * 16 * (32 * 8 + 32 * 32)
    teacher_flops = found.forward_flops - without.forward_flops - head_flops
    assert teacher_flops > 0
    more = (found.gpu_hours - without.gpu_hours) / without.gpu_hours
    assert more == pytest.approx((teacher_flops + 3 * head_flops) / (3 * without.forward_flops))
