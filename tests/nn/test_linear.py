"""The linear coder with networks on top: in closed form before the first step."""

import copy

import pytest
import torch
from torch import Tensor

from channelvq import CVQTokenizer
from channelvq.config import from_dict
from channelvq.errors import InputError
from channelvq.nn.linear import LinearConfig, LinearMap
from channelvq.nn.separable import SeparableMap
from channelvq.nn.unet import UNetConfig
from channelvq.tokenizer import CVQConfig
from channelvq.train.plan import Machine, plan
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe

NET = UNetConfig(base_channels=8, multipliers=(1, 2), num_blocks=1, stem=4)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=seeded(seed)) * 2 - 1


def some_basis(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(mean, basis, rows, slots) of some orthonormal rows in scattered places."""
    basis = torch.linalg.qr(torch.randn(768, rows, generator=seeded(1)))[0].T
    slots = torch.randperm(32, generator=seeded(3))[:rows]
    return torch.randn(768, generator=seeded(2)) / 5, basis, torch.arange(rows), slots


def tokenizer(axis: str = "channel", **network: object) -> CVQTokenizer:
    settings = {"image_size": 16, "latent_channels": 8, "axis": axis, "quantizer": {"kind": "simvq-tokenwise",
                "codebook_size": 32, "rank": 4}, "network": LinearConfig(components=24, **network)}  # type: ignore[arg-type]  # fmt: skip
    torch.manual_seed(0)
    tok = CVQTokenizer(from_dict(CVQConfig, settings))
    tok.encoder.linear.place(*some_basis(20))
    return tok.eval()


@pytest.mark.parametrize("axis", ["channel", "patch"])
@pytest.mark.parametrize("networks", [{}, {"encoder": NET, "decoder": NET}])
def test_before_the_first_step_it_is_the_linear_coder(axis: str, networks: dict[str, UNetConfig]) -> None:
    tok, x = tokenizer(axis, **networks), images()
    mean, basis, _, slots = some_basis(20)
    coefficients = (x.flatten(1) - mean) @ basis.T
    z = tok.encoder(x)
    torch.testing.assert_close(z.flatten(1)[:, slots], coefficients)
    assert torch.equal(tok.encoder.first_maps(x), z)
    assert z.shape == (5, 8, 2, 2)
    assert int((z != 0).sum(0).count_nonzero()) == 20
    x_hat, _ = tok(x, quantize=False)
    torch.testing.assert_close(x_hat.flatten(1), coefficients @ basis + mean)
    # Through the codebook: the codewords, in their places, times the basis.
    tok.quantizer.start_from(tok.encoder(images(200, seed=4)), seeded(0))
    x_hat, quantized = tok(x)
    assert quantized is not None
    torch.testing.assert_close(x_hat.flatten(1), quantized.z_q.flatten(1)[:, slots] @ basis + mean)
    assert torch.equal(tok.decode(tok.ids_to_latents(quantized.indices)), x_hat)


def test_networks_change_what_the_linear_part_sees_and_what_it_gives() -> None:
    tok, x = tokenizer(encoder=NET, decoder=NET), images()
    before, image = tok.encoder(x), tok.decoder(tok.encoder(x))
    torch.nn.init.normal_(tok.encoder.residual.out.weight, std=0.1)
    torch.testing.assert_close(tok.encoder(x), tok.encoder.linear.analyse(x + tok.encoder.residual(x)))
    assert not torch.allclose(tok.encoder(x), before, atol=1e-3)
    torch.nn.init.normal_(tok.decoder.residual.out.weight, std=0.1)
    torch.testing.assert_close(tok.decoder(before), image + tok.decoder.residual(image))
    assert tok.decoder.last_weight is tok.decoder.residual.out.weight


def test_the_linear_part_is_in_float32_under_autocast() -> None:
    tok, x = tokenizer(encoder=NET, decoder=NET), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = tok.encoder(x)
        restored = tok.decoder(z)
    assert z.dtype == restored.dtype == torch.float32
    assert torch.equal(z, tok.encoder(x))  # the networks are still zero
    assert torch.equal(restored, tok.decoder(z))


def test_the_rows_that_the_data_did_not_fill_have_places_of_their_own() -> None:
    part = LinearMap(24, 24, (8, 2, 2), 16)
    assert not part.placed
    part.place(*some_basis(20))
    assert part.placed
    assert len(part.slots.unique()) == 24
    assert torch.equal(part.slots[:20], some_basis(20)[3])
    assert not part.basis[20:].any()
    part.place(*some_basis(7))
    assert len(part.slots.unique()) == 24
    assert not part.basis[7:].any()


def test_the_networks_must_fit_the_maps() -> None:
    with pytest.raises(InputError, match=r"network.*downsampling 4 must be a multiple of the encoder's, 8 \(stem 4"):
        from_dict(CVQConfig, {"network": {"kind": "linear", "downsampling": 4, "encoder": {"stem": 4}}})
    with pytest.raises(InputError, match=r"image_size 60 must be a multiple.*8 \(downsampling 8\)"):
        from_dict(CVQConfig, {"image_size": 60, "network": {"kind": "linear"}})


def test_a_plan_counts_its_networks() -> None:
    found = plan("x", load_recipe("small/tokens-channel", of=TokenizerRecipe), Machine(gpus=1))
    parts = {part.name: part.parameters for part in found.parts}
    assert parts["quantizer"] == 4096 * 24 + 64 * 64 * 24
    assert parts["encoder"] == parts["decoder"] > 1_000_000
    assert found.forward_flops > 2 * 2 * 768 * 12288  # the linear part alone, there and back


def test_a_component_in_several_slots_is_their_sum() -> None:
    part = LinearMap(3, 6, (8, 2, 2), 16)
    mean, basis, _, _ = some_basis(3)
    chosen, slots = torch.tensor([2, 0, 2, 1, 2]), torch.tensor([31, 4, 7, 0, 12])
    part.place(mean, basis, chosen, slots)
    x = images()
    coefficients = (x.flatten(1) - mean) @ basis.T
    z = part.analyse(x).flatten(1)
    torch.testing.assert_close(z[:, slots], coefficients[:, chosen])
    assert int(z.any(0).sum()) == 5
    expected = torch.stack([z[:, 4], z[:, 0], z[:, 31] + z[:, 7] + z[:, 12]], 1)
    torch.testing.assert_close(part.synthesise(z.view(5, 8, 2, 2)).flatten(1), expected @ basis + mean)
    # Equal numbers are the same component; what holds none has a number of its own.
    numbers = part.numbers()
    assert int(numbers[31]) == int(numbers[7]) == int(numbers[12]) == 2
    assert len(numbers.unique()) == 32 - 2


def test_both_ways_share_one_linear_part_that_is_stored_once() -> None:
    tok = tokenizer(encoder=NET, decoder=NET)
    assert tok.decoder.linear is tok.encoder.linear
    assert [name for name in tok.state_dict() if name.endswith("basis")] == [
        "encoder.linear.basis", "quantizer.quantizer.basis"
    ]  # fmt: skip
    twin = copy.deepcopy(tok)
    assert twin.decoder.linear is twin.encoder.linear is not tok.encoder.linear
    assert tok.double().decoder(torch.zeros(1, 8, 2, 2).double()).dtype == torch.float64


# The separable form


def separable(rows: int = 20, count: int = 24) -> SeparableMap:
    part = SeparableMap(count, (8, 2, 2), 16, block_side=4, features=6)
    block = torch.linalg.qr(torch.randn(48, 6, generator=seeded(1)))[0].T
    grid = torch.linalg.qr(torch.randn(6, 16, 16, generator=seeded(2)))[0]
    chosen, slots = torch.randperm(96, generator=seeded(3))[:rows], torch.randperm(32, generator=seeded(4))[:rows]
    part.place(torch.randn(768, generator=seeded(5)) / 5, block, grid, chosen, slots)
    return part


def test_the_separable_form_is_an_orthogonal_transform() -> None:
    part, x = separable(), images()
    z = part.analyse(x)
    assert z.shape == (5, 8, 2, 2)
    assert int(z.flatten(1).any(0).sum()) == 20  # the four rows without data stay zero
    y = part.synthesise(z)
    # A projection: analysing the result changes nothing, and what it leaves out is orthogonal to what it keeps.
    torch.testing.assert_close(part.analyse(y), z, rtol=1e-4, atol=1e-5)
    kept, left = (y.flatten(1) - part.mean), (x - y).flatten(1)
    torch.testing.assert_close((kept * left).sum(1), torch.zeros(5), rtol=0, atol=1e-3)
    torch.testing.assert_close(kept.square().sum(1), z.flatten(1).square().sum(1), rtol=1e-4, atol=1e-4)
    # One coefficient is one pattern of one feature of the blocks, placed on the grid.
    one = torch.zeros(1, 8, 2, 2)
    one.view(-1)[part.slots[7]] = 1.0
    feature, pattern = divmod(int(part.chosen[7]), 16)
    image = (part.synthesise(one) - part.mean.view(3, 16, 16))[0]
    block, amounts = part.block[feature].view(3, 4, 4), part.grid[feature, pattern].view(4, 4)
    torch.testing.assert_close(image, torch.einsum("cyx,ij->ciyjx", block, amounts).reshape(3, 16, 16))


def test_a_separable_coder_is_as_large_as_its_settings_say_and_takes_what_it_is_given() -> None:
    tok = CVQTokenizer(from_dict(CVQConfig, {"image_size": 32, "latent_channels": 8, "network": {
        "kind": "linear", "form": "separable", "block": 4, "features": 6, "components": 24}}))  # fmt: skip
    assert tok.encoder.linear.block.shape == (6, 48)
    assert tok.encoder.linear.grid.shape == (6, 64, 64)
    assert not tok.encoder.linear.placed
    full = separable(rows=24)
    assert full.placed
    assert bool(full.used.all())
    with pytest.raises(InputError, match="downsampling 8 must be a multiple of block 3"):
        from_dict(CVQConfig, {"network": {"kind": "linear", "form": "separable", "block": 3}})
