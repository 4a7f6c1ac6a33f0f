"""Tokens that pass on their errors: each sees what is left of the numbers that it shares with those before."""

import copy
import math

import pytest
import torch
from torch import Tensor

from channelvq import ChannelVQ
from channelvq.errors import InputError, NotFiniteError
from channelvq.lookup.mapped import nearest_mapped
from channelvq.principal import water_level
from channelvq.quantize.residual import ResidualSimVQCodebook, ResidualSimVQConfig
from channelvq.quantize.tokenwise import TokenwiseSimVQConfig
from channelvq.quantize.tokenwise_start import fit_maps, principal_maps
from channelvq.train.start import share_out

NUMBERS = torch.tensor([[0, 1, 2, 3], [2, 0, 4, 1], [9, 4, 3, 0]])  # 9 stands for itself, as 5 would


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_numbers(batch: int, seed: int = 0) -> Tensor:
    """(B, 10) numbers of images, of falling variance."""
    return torch.randn(batch, 10, generator=seeded(seed)) * torch.linspace(3, 0.3, 10)


def codebook(size: int = 64, **settings: object) -> ResidualSimVQCodebook:
    config = ResidualSimVQConfig(codebook_size=size, rank=4, **settings)  # type: ignore[arg-type]
    quantizer = config.build(4, 3)
    quantizer.share(NUMBERS)
    quantizer.start_from_tokens(image_numbers(500)[:, NUMBERS], seeded(0))
    return quantizer.eval()


def test_a_token_quantizes_what_those_before_it_left() -> None:
    quantizer, x = codebook(), image_numbers(20, seed=1)
    out = quantizer(x[:, NUMBERS])
    left = x.clone()
    for k, numbers in enumerate(NUMBERS):
        table = quantizer.codes().double() @ quantizer.weight[k].double().T
        nearest = torch.cdist(left[:, numbers].double(), table, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        assert torch.equal(out.indices[:, k], nearest)
        torch.testing.assert_close(quantizer.targets(x[:, NUMBERS], out.z_q)[:, k], left[:, numbers])
        left[:, numbers] -= out.z_q[:, k]
    assert torch.equal(quantizer.indices_to_codes(out.indices), out.z_q)
    assert torch.equal(quantizer.indices_to_codes(out.indices[3:4, :2]), out.z_q[3:4, :2])
    # So a number in three tokens is restored better than one of its variance in one.
    errors = left.square().mean(0) / x.square().mean(0)
    assert float(errors[0]) < 0.1


def test_an_image_alone_has_the_ids_that_it_has_among_others() -> None:
    quantizer, z = codebook(), image_numbers(20, seed=2)[:, NUMBERS]
    ids = quantizer(z).indices
    for i in (0, 7, 19):
        assert torch.equal(quantizer(z[i : i + 1]).indices, ids[i : i + 1])
    # Dropped tokens take nothing from those before them.
    keep = torch.tensor([[True, True, False]]).expand(20, 3)
    assert torch.equal(quantizer(z, keep).indices, ids)


def test_gradients_of_shared_numbers_add_up_to_that_of_the_image() -> None:
    quantizer, x = codebook(beta=0.0).train(), image_numbers(5, seed=3).requires_grad_()
    out = quantizer(x[:, NUMBERS])
    image = torch.zeros(5, 10).index_add(1, NUMBERS.flatten(), out.z_q.flatten(1))
    incoming = torch.randn(5, 10, generator=seeded(4))
    (image * incoming).sum().backward()
    used = NUMBERS.unique()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[:, used], incoming[:, used])


def test_gradients_of_the_two_terms() -> None:
    quantizer, x = codebook(beta=0.5, codebook_weight=2.0).train(), image_numbers(5, seed=3)
    z = x[:, NUMBERS].requires_grad_()
    out = quantizer(z)
    out.loss.backward()
    left, before = [], x.clone()
    for k, numbers in enumerate(NUMBERS):
        left.append(before[:, numbers].clone())
        before[:, numbers] -= out.z_q[:, k].detach()
    error = torch.stack(left, 1) - out.z_q.detach()
    # The encoder is told of the last error of each number, once in all.
    counts = torch.bincount(NUMBERS.flatten(), minlength=10)
    last = (before / counts.clamp(min=1))[:, NUMBERS]
    torch.testing.assert_close(z.grad, 0.5 * 2 * last / z.numel())
    chosen = quantizer.basis.detach()[out.indices]
    expected = -2.0 * 2 * torch.einsum("bkd,bkr->kdr", error, chosen) / z.numel()
    torch.testing.assert_close(quantizer.weight.grad, expected)


def test_the_terms_count_the_kept_tokens_alone() -> None:
    quantizer, x = codebook(beta=0.5, codebook_weight=2.0), image_numbers(5, seed=3)
    z = x[:, NUMBERS]
    keep = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])[[0, 1, 2, 1, 0]]
    out = quantizer(z, keep)
    error = (quantizer.targets(z, out.z_q) - out.z_q).square().mean(2)
    counts = torch.bincount(NUMBERS.flatten(), minlength=10)
    given = torch.zeros(5, 10).index_add(1, NUMBERS.flatten(), out.z_q.flatten(1))
    last = ((x - given).square() / counts.clamp(min=1))[:, NUMBERS].mean(2)
    assert out.losses.keys() == {"codebook", "commitment"}
    torch.testing.assert_close(out.losses["codebook"], 2.0 * (error * keep).mean())
    torch.testing.assert_close(out.losses["commitment"], 0.5 * (last * keep).mean())


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_each_token_starts_from_what_those_before_it_leave(iterations: int) -> None:
    settings = {"codebook_size": 64, "rank": 3, "iterations": iterations}
    quantizer, new = (ResidualSimVQConfig(**settings).build(4, 3) for _ in range(2))  # type: ignore[arg-type]
    quantizer.share(NUMBERS)
    z = image_numbers(500)[:, NUMBERS]
    quantizer.start_from_tokens(z, seeded(0))
    # The codebook is fitted between two rounds.
    assert torch.equal(quantizer.basis, new.basis) == (iterations < 2)
    if iterations < 2:
        left = quantizer.targets(z, quantizer.eval()(z).z_q)
        for k in range(3):
            token = left[:, k : k + 1]
            maps = principal_maps(token, 3, math.log2(64))
            if iterations:
                maps = fit_maps(token, quantizer.basis, nearest_mapped(token, maps, quantizer.basis), maps)
            torch.testing.assert_close(quantizer.weight[k], maps[0], atol=1e-4, rtol=1e-4)


def test_without_shared_numbers_it_is_the_tokenwise_quantizer() -> None:
    z = image_numbers(300)[:, None, :4] * torch.tensor([3.0, 2.0, 1.0])[:, None]
    settings = {"codebook_size": 32, "rank": 4, "iterations": 0, "power": 1.2}
    residual = ResidualSimVQConfig(**settings).build(4, 3)  # type: ignore[arg-type]
    tokenwise = TokenwiseSimVQConfig(**settings).build(4, 3)  # type: ignore[arg-type]
    for quantizer in (residual, tokenwise):
        quantizer.start_from_tokens(z, seeded(0))
    torch.testing.assert_close(residual.weight, tokenwise.weight)
    assert torch.equal(residual(z).indices, tokenwise(z).indices)


def test_what_is_shared_is_saved_and_mistakes_are_named() -> None:
    quantizer = codebook()
    other = ResidualSimVQConfig(codebook_size=64, rank=4).build(4, 3)
    other.load_state_dict(copy.deepcopy(quantizer.state_dict()))
    z = image_numbers(9)[:, NUMBERS]
    assert torch.equal(other.eval()(z).indices, quantizer(z).indices)
    with pytest.raises(InputError, match=r"^share: a token has the same number twice; a token holds each number at"):
        quantizer.share(torch.tensor([[0, 1, 1, 2]] * 3))
    with pytest.raises(InputError, match=r"share: expected \(3, 4\), got \(2, 4\)"):
        quantizer.share(NUMBERS[:2])
    with pytest.raises(InputError, match="num_tokens"):
        ChannelVQ(32, 16, kind="simvq-residual")
    with pytest.raises(NotFiniteError):
        quantizer(z * float("nan"))


def test_tokens_take_what_most_is_left_of() -> None:
    variances = torch.tensor([1024.0, 64.0, 64.0, 1.0, 0.9], dtype=torch.float64)
    shared = share_out(variances, 3, 6.0, 2)
    # 6 bits: 4 for the first and 2 for the second, both left at 4; then the third and the first again.
    assert shared[0].tolist() == [0, 1]
    level = float(water_level(variances[:2], 6.0))
    assert level == pytest.approx(4.0)
    assert shared[1].tolist() == [2, 0]
    assert shared[2].tolist() == [1, 3]  # left at 4 by the first token, and never touched
    assert share_out(variances[:2], 3, 6.0, 5).shape == (3, 2)
