"""A tokenizer that starts as a linear coder of its data, through the recipes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from channelvq import CVQTokenizer
from channelvq.data.stream import fixed_images
from channelvq.errors import InputError
from channelvq.images import normalize
from channelvq.quantize.kmeans import FewVectorsWarning
from channelvq.registry import Registry
from channelvq.train import tokenizer_task
from channelvq.train.run import load_recipe, train
from channelvq.train.start import deal_out, fit_linear, principal_components, start_linear
from channelvq.train.tokenizer_task import Start, TokenizerRecipe, TokenizerTask

TINY = (
    "model.image_size=32", "model.latent_channels=4", "model.quantizer.codebook_size=32", "model.quantizer.rank=4",
    "model.network.encoder.base_channels=8", "model.network.decoder.base_channels=8", "model.network.components=16",
    "model.network.start_images=64", "objective.start_images=64", "data.sources.scenes.kind=scenes",
    "data.sources.fluent.weight=0", "data.sources.noto.weight=0", "data.sources.twemoji.weight=0",
    "data.sources.photos.weight=0", "data.validation_images=8", "train.batch_size=4", "train.warmup_steps=0",
    "train.checkpoint_every=2", "train.device=cpu", "train.precision=no", "train.threads=1",
)  # fmt: skip


WITHOUT_RANK = tuple(setting for setting in TINY if "rank" not in setting)
# The full form and a map for each token on the axis of patches too; small/tokens-patch has what serves patches better.
RECIPES = {
    "channel": ("small/tokens-channel", ()),
    "patch": ("small/tokens-channel", ("model.axis=patch",)),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 300, size: int = 8) -> Tensor:
    """uint8 images of a few patterns, of falling weight, and noise."""
    patterns = torch.randn(6, 3 * size * size, generator=seeded(8))
    weights = torch.tensor([30.0, 20.0, 12.0, 8.0, 5.0, 3.0])
    noise = torch.randn(count, 3 * size * size, generator=seeded(9))
    flat = 128 + (torch.randn(count, 6, generator=seeded(10)) * weights) @ patterns / 2 + 2 * noise
    return flat.clamp(0, 255).to(torch.uint8).unflatten(1, (3, size, size))


def fit(recipe: str, folder: Path, steps: int, *more: str) -> dict[str, Tensor]:
    settings = [*(WITHOUT_RANK if recipe == "small/tokens-patch" else TINY)]
    settings += [f"train.output_dir={folder}", f"train.steps={steps}", *more]
    assert train(load_recipe(recipe, settings, of=TokenizerRecipe)) is not None
    return load_file(folder / "final" / "model.safetensors")


def test_components_are_the_eigenvectors_of_the_second_moments() -> None:
    images = pictures()
    mean, basis, variances = principal_components(images, 12, seeded(0))
    x = normalize(images).flatten(1).double()
    torch.testing.assert_close(mean.double(), x.mean(0), rtol=0, atol=1e-6)
    values, vectors = torch.linalg.eigh((x - x.mean(0)).T @ (x - x.mean(0)) / len(x))
    values, vectors = values.flip(0)[:12], vectors.flip(1)[:, :12]
    torch.testing.assert_close(variances[:6], values[:6], rtol=1e-4, atol=0)
    torch.testing.assert_close((basis.double() @ vectors)[:6, :6].abs(), torch.eye(6).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(basis @ basis.T, torch.eye(12), rtol=0, atol=1e-5)
    # What twelve rows keep of the variance is nearly the most that twelve rows can.
    assert float(((x - x.mean(0)) @ basis.double().T).square().sum() / len(x)) > 0.99 * float(values.sum())


def test_images_without_variance_are_refused_and_few_images_have_few_components() -> None:
    with pytest.raises(InputError, match="all the same"):
        principal_components(torch.full((9, 3, 8, 8), 7, dtype=torch.uint8), 4, seeded(0))
    mean, basis, variances = principal_components(pictures(5), 64, seeded(0))
    assert len(basis) == len(variances) == 4
    restored = mean + (normalize(pictures(5)).flatten(1) - mean) @ basis.T @ basis
    torch.testing.assert_close(restored, normalize(pictures(5)).flatten(1), rtol=0, atol=1e-4)


def test_tokens_take_components_until_they_have_their_bits() -> None:
    # Four bits for each of two tokens; the level is 1: three bits, then one of each 1 bit, and the last shows nothing.
    variances = torch.tensor([64.0, 4.0, 4.0, 4.0, 4.0, 4.0, 0.5], dtype=torch.float64)
    assert deal_out(variances, 2, 4.0).tolist() == [0, 0, 1, 1, 1, 1]
    # A component that is worth more than a token leaves that token the first of it.
    assert deal_out(torch.tensor([2.0**20, 1.0, 1.0], dtype=torch.float64), 2, 5.0).tolist()[0] == 0


@pytest.mark.parametrize("axis", ["channel", "patch"])
def test_the_tokenizer_at_step_0_is_the_linear_coder(axis: str) -> None:
    recipe, more = RECIPES[axis]
    task = TokenizerTask(load_recipe(recipe, [*TINY, *more], of=TokenizerRecipe))
    tok = task.tokenizer
    assert not tok.encoder.linear.placed
    task.start()
    x = normalize(task.held_out)
    with torch.no_grad():
        x_hat, quantized = tok(x)
    basis, mean = tok.encoder.linear.basis, tok.encoder.linear.mean
    rows = basis[basis.any(1)]
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0, atol=1e-4)
    codes = quantized.z_q.flatten(1)[:, tok.encoder.linear.slots]
    torch.testing.assert_close(x_hat.flatten(1), codes @ basis + mean)
    # Codewords are near the coefficients that they stand for, in the directions of the basis alone.
    coefficients = (x.flatten(1) - mean) @ basis.T
    assert float((codes - coefficients).square().sum()) < 0.5 * float(coefficients.square().sum())
    free = torch.ones(quantized.z_q[0].numel(), dtype=torch.bool)
    free[tok.encoder.linear.slots[: len(rows)]] = False
    assert float(quantized.z_q.flatten(1)[:, free].abs().max()) < 1e-6


@pytest.mark.parametrize("axis", ["channel", "patch"])
def test_the_separable_start(axis: str) -> None:
    recipe, more = RECIPES[axis]
    settings = [*TINY, *more, "model.network.form=separable", "model.network.features=12"]
    task = TokenizerTask(load_recipe(recipe, settings, of=TokenizerRecipe))
    task.start()
    tok, part, x = task.tokenizer, task.tokenizer.encoder.linear, normalize(task.held_out)
    eye = torch.eye(12)
    torch.testing.assert_close(part.block @ part.block.T, eye, rtol=0, atol=1e-4)
    torch.testing.assert_close(part.grid @ part.grid.mT, torch.eye(16).expand(12, 16, 16), rtol=0, atol=1e-4)
    with torch.no_grad():
        x_hat, quantized = tok(x)
        linear, _ = tok(x, quantize=False)
        torch.testing.assert_close(x_hat, part.synthesise(quantized.z_q))
    errors = [float((y - x).square().mean()) for y in (part.mean.view(3, 32, 32), x_hat, linear)]
    assert errors[0] > 1.2 * errors[1] > 1.2 * errors[2]
    # The coefficients that were chosen are those of the largest variance, in falling order from token to token.
    if axis == "channel":
        spread = part.all_coefficients(normalize(fixed_images(task.data, 64)))[:, part.chosen[part.used.bool()]].var(0)
        assert float(spread[:4].mean()) > 2 * float(spread[-4:].mean())
    else:
        real = part.used.bool()  # a patch's numbers at the patch's own place
        assert torch.equal(part.chosen[real] % 16, part.slots[real] % 16)


def test_one_codebook_of_all_patches_sees_the_same_features_in_the_same_order() -> None:
    settings = [*WITHOUT_RANK, "model.network.features=12", "model.network.components=192"]
    task = TokenizerTask(load_recipe("small/tokens-patch", settings, of=TokenizerRecipe))
    task.start()
    part, x = task.tokenizer.encoder.linear, normalize(task.held_out)
    features = torch.einsum("fp,bpg->bfg", part.block, F.pixel_unshuffle(x - part.mean.view(3, 32, 32), 8).flatten(2))
    torch.testing.assert_close(part.analyse(x).flatten(2)[:, :12], features[:, :4], rtol=1e-4, atol=1e-4)


def test_a_patchs_components_lie_in_the_patch() -> None:
    recipe = load_recipe("small/tokens-channel", [*TINY, "model.axis=patch"], of=TokenizerRecipe)
    found = fit_linear(recipe.model, pictures(200, 32), 16, 16, 0)
    assert len(found.basis) == 16
    for row, slot in zip(found.basis.unflatten(1, (3, 32, 32)), found.slots.tolist(), strict=True):
        y, x = divmod(slot % 16, 4)
        inside = row[:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        assert float(inside.square().sum()) == pytest.approx(1, abs=1e-5)
        assert row.count_nonzero() == inside.count_nonzero()


def test_channels_get_falling_shares_of_the_variance() -> None:
    recipe = load_recipe("small/tokens-channel", TINY, of=TokenizerRecipe)
    found = fit_linear(recipe.model, pictures(300, 32), 16, 16, 0)
    spread = ((normalize(pictures(300, 32)).flatten(1) - found.mean) @ found.basis.T).var(0)
    tokens = found.slots // 16
    largest = torch.stack([spread[tokens == k].max() for k in tokens.unique()])
    assert torch.equal(largest, largest.sort(descending=True).values)
    assert torch.equal(tokens, tokens.sort().values)
    assert int(torch.bincount(tokens).max()) <= 4  # the rank


@pytest.mark.parametrize("recipe", ["small/tokens-channel", "small/tokens-patch", "small/tokens-residual"])
def test_a_recipe_trains_saves_and_resumes_to_the_bit(recipe: str, tmp_path: Path) -> None:
    whole = fit(recipe, tmp_path / "whole", 4)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for name in ("checkpoints/step-00000004", "final"):
        shutil.rmtree(tmp_path / "parts" / name)
    parts = fit(recipe, tmp_path / "parts", 4, "train.resume=true")
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name
    first = fit(recipe, tmp_path / "one", 1)
    fixed = (
        "linear.",
        "started",
        "numbers",
        "copies",
        *(["quantizer.basis"] if recipe == "small/tokens-patch" else []),
    )
    still = [name for name in whole if torch.equal(whole[name], first[name]) and not any(f in name for f in fixed)]
    assert [name for name in still if not name.endswith("bias")] == []
    tok = CVQTokenizer.from_pretrained(tmp_path / "whole" / "final")
    x = torch.rand(3, 3, 32, 32, generator=seeded(3)) * 2 - 1
    ids = tok.tokenize(x)
    assert ids.shape == (3, tok.num_tokens)
    assert torch.equal(tok.tokenize(x[1:2]), ids[1:2])
    assert tok.detokenize(ids[:, :2], "tensor").shape == (3, 3, 32, 32)


def test_given_weights_are_not_fitted_again(tmp_path: Path) -> None:
    fit("small/tokens-channel", tmp_path, 1)
    given = CVQTokenizer.from_pretrained(tmp_path / "final")
    recipe = load_recipe(
        "small/tokens-channel",
        [*TINY, f"objective.start_from={tmp_path / 'final'}", "train.seed=5"],
        of=TokenizerRecipe,
    )
    task = TokenizerTask(recipe)
    task.start()
    for name, tensor in given.state_dict().items():
        assert torch.equal(task.tokenizer.state_dict()[name], tensor), name


def test_another_network_has_no_linear_start() -> None:
    with pytest.raises(InputError, match=r"model\.network\.kind=linear, got ConvEncoder"):
        start_linear(CVQTokenizer(), lambda count: pictures(), 0)


def test_any_kind_of_network_may_have_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(
        "small/smoke",
        ["model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8", "train.seed=3",
         "model.quantizer.codebook_size=8", "data.validation_images=8", "objective.start_images=8"],
        of=TokenizerRecipe,
    )  # fmt: skip
    seen = []

    def start(tokenizer: CVQTokenizer, images: Callable[[int], Tensor], seed: int) -> None:
        seen.append((images(5), seed, bool(tokenizer.quantizer.quantizer.started)))
        for parameter in tokenizer.encoder.parameters():
            parameter.data.zero_()

    starts: Registry[Start] = Registry("start of a network", {})
    monkeypatch.setattr(tokenizer_task, "STARTS", starts)
    starts.register("conv", start)
    task = TokenizerTask(recipe)
    with pytest.warns(FewVectorsWarning, match="1 distinct vectors"):
        task.start()
    ((images, seed, started),) = seen
    assert torch.equal(images, fixed_images(task.data, 5))
    assert (seed, started) == (3, False)
    # The codebook started from what the network then gave, zeros, but for the noise that parts equal codes.
    assert bool(task.tokenizer.quantizer.quantizer.started)
    assert float(task.tokenizer.quantizer.codes().detach().abs().max()) < 0.01


def test_without_a_network_nothing_can_be_trained_before_the_codebook() -> None:
    bare = ("model.network.encoder=null", "model.network.decoder=null", "objective.start_step=1", "train.steps=2")
    settings = [setting for setting in TINY if "network.encoder" not in setting and "network.decoder" not in setting]
    with pytest.raises(InputError, match=r"start_step: model\.network has no weights to train"):
        TokenizerTask(load_recipe("small/tokens-channel", [*settings, *bare], of=TokenizerRecipe))
