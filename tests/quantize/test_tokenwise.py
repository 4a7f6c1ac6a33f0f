"""SimVQ with a map for each token: what it promises beyond what the family does (test_family.py)."""

import copy
import math

import pytest
import torch
from torch import Tensor

from channelvq import ChannelVQ
from channelvq.errors import InputError, NotFiniteError
from channelvq.lookup.mapped import nearest_mapped
from channelvq.quantize.tokenwise import TokenwiseSimVQCodebook, TokenwiseSimVQConfig
from channelvq.quantize.tokenwise_start import place_maps, principal_maps, random_codebook


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(batch: int, seed: int = 0) -> Tensor:
    """(B, 6, 16): each token varies in two or three directions of its own, by other amounts."""
    directions = torch.linalg.qr(torch.randn(6, 16, 3, generator=seeded(90)))[0]
    amounts = torch.tensor([[9.0, 3.0, 0.0], [4.0, 2.0, 1.0], [2.0, 1.0, 1.0], [1.0, 1.0, 0.5], [0.5] * 3, [0.1] * 3])
    return torch.einsum("kdr,bkr->bkd", directions, torch.randn(batch, 6, 3, generator=seeded(seed)) * amounts)


def codebook(**settings: object) -> TokenwiseSimVQCodebook:
    config = TokenwiseSimVQConfig(**({"codebook_size": 64, "rank": 4} | settings))  # type: ignore[arg-type]
    quantizer = TokenwiseSimVQCodebook(config, 16)
    quantizer.start_from_tokens(tokens(500), seeded(0))
    return quantizer


def test_codewords_are_the_maps_times_the_shared_codebook() -> None:
    quantizer, z = codebook(), tokens(20, seed=1)
    out = quantizer(z)
    expected = torch.einsum("bkr,kdr->bkd", quantizer.codes().double()[out.indices], quantizer.weight.double())
    torch.testing.assert_close(out.z_q.double(), expected, rtol=1e-6, atol=1e-6)
    # To the bit however few tokens and images are asked for.
    for k in range(1, 7):
        assert torch.equal(quantizer.indices_to_codes(out.indices[:, :k]), out.z_q[:, :k])
        assert torch.equal(quantizer.indices_to_codes(out.indices[3:4, :k]), out.z_q[3:4, :k])


def test_the_index_is_that_of_the_nearest_codeword_of_its_token() -> None:
    quantizer, z = codebook(), tokens(20, seed=2)
    table = torch.einsum("nr,kdr->knd", quantizer.codes().double(), quantizer.weight.double())
    distances = (z.double()[:, :, None] - table).square().sum(3)
    assert torch.equal(quantizer(z).indices, distances.argmin(2))


def test_gradients_are_those_of_the_two_terms() -> None:
    quantizer, z = codebook(beta=0.5, codebook_weight=2.0), tokens(5, seed=3).requires_grad_()
    out = quantizer(z)
    incoming = torch.randn(z.shape, generator=seeded(4))
    (out.loss + (out.z_q * incoming).sum()).backward()
    error, chosen = (z - out.z_q).detach(), quantizer.basis.detach()[out.indices]
    assert z.grad is not None
    torch.testing.assert_close(z.grad, incoming + 0.5 * 2 * error / z.numel())
    expected = -2.0 * 2 * torch.einsum("bkd,bkr->kdr", error, chosen) / z.numel()
    torch.testing.assert_close(quantizer.weight.grad, expected)
    back = -2.0 * 2 * torch.einsum("bkd,kdr->bkr", error, quantizer.weight.detach()) / z.numel()
    into = torch.zeros_like(quantizer.basis).index_add_(0, out.indices.flatten(), back.flatten(0, 1))
    torch.testing.assert_close(quantizer.basis.grad, into)


def test_a_frozen_codebook_stays() -> None:
    quantizer = codebook(learn_codebook=False)
    assert [name for name, p in quantizer.named_parameters() if p.requires_grad] == ["weight"]
    quantizer(tokens(5)).loss.backward()
    assert quantizer.basis.grad is None


# The number of tokens


def test_the_number_of_tokens_is_that_of_the_first_call() -> None:
    z = tokens(40).unflatten(2, (4, 4))
    vq = ChannelVQ(32, 16, kind="simvq-tokenwise", rank=4)
    with pytest.raises(InputError, match="for none yet"):
        vq.indices_to_codes(torch.zeros(1, 1, dtype=torch.int64))
    twin = copy.deepcopy(vq)
    z_q, indices, _ = vq.train()(z)
    assert float((z_q - z).square().mean()) < 0.5 * float(z.square().mean())
    assert vq.quantizer.weight.shape == (6, 16, 4)
    with pytest.raises(InputError, match="expected 6 tokens an image, one for each map, got 5"):
        vq(z[:, :5])
    with pytest.raises(InputError, match="7 tokens were given, this codebook is for 6"):
        vq.indices_to_codes(torch.zeros(1, 7, dtype=torch.int64))
    # What has seen no tokens yet takes the number from the weights that it loads.
    twin.load_state_dict(vq.state_dict())
    assert torch.equal(twin(z).indices, indices)


def test_a_start_needs_the_tokens_of_whole_images() -> None:
    unknown = TokenwiseSimVQCodebook(TokenwiseSimVQConfig(codebook_size=8), 16)
    known = TokenwiseSimVQCodebook(TokenwiseSimVQConfig(codebook_size=8, num_tokens=6), 16)
    with pytest.raises(InputError, match="give num_tokens, or feature maps"):
        unknown.start_from(tokens(4).flatten(0, 1), seeded(0))
    with pytest.raises(InputError, match="23 tokens are not whole images of 6 tokens each"):
        known.start_from(tokens(4).flatten(0, 1)[:-1], seeded(0))
    known.start_from(tokens(4).flatten(0, 1), seeded(0))
    assert bool(known.started)


def test_a_tokenizers_settings_decide_on_the_number() -> None:
    assert TokenwiseSimVQConfig().build(8, 64).num_tokens == 64
    with pytest.raises(InputError, match=r"num_tokens is 3, the tokenizer has 64 tokens"):
        TokenwiseSimVQConfig(num_tokens=3).build(8, 64)


# The start


def test_maps_are_the_directions_above_the_water_times_their_deviation() -> None:
    deviations = torch.tensor([8.0, 4.0, 1.0, 0.5])
    turn = torch.linalg.qr(torch.randn(4, 4, generator=seeded(2)))[0]
    # Exactly these second moments: both signs of each direction.
    z = math.sqrt(4) * torch.cat([turn.T * deviations[:, None], -turn.T * deviations[:, None]])[:, None]
    # Level for 3 bits over the first two: (64 * 16)^(1/2) 2^-3 = 4, above the third's 1.
    maps = principal_maps(z, 3, 3.0)[0]
    torch.testing.assert_close(maps.T @ maps, torch.diag(torch.tensor([64.0, 16.0, 0.0])), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps[:, :2] @ maps[:, :2].T, (turn[:, :2] * torch.tensor([64.0, 16.0])) @ turn[:, :2].T)


def test_each_round_of_the_start_helps() -> None:
    z, fresh, first = tokens(2000), tokens(500, seed=7), random_codebook(64, 4, 1.3, seeded(0))
    errors, held_out = [], []
    for rounds in (0, 1, 4):
        maps, table = place_maps(z, first, rounds)
        for images, into in ((z, errors), (fresh, held_out)):
            indices = nearest_mapped(images, maps, table)
            into.append(float((torch.einsum("bkr,kdr->bkd", table[indices], maps) - images).square().sum(2).mean()))
    assert errors[0] > errors[1] > errors[2]
    assert held_out[2] < 0.9 * held_out[0]
    assert held_out[2] < 0.15 * float(fresh.square().sum(2).mean())


def test_a_token_without_variance_and_a_single_image() -> None:
    z = tokens(50)
    z[:, 2] = 0
    quantizer = TokenwiseSimVQCodebook(TokenwiseSimVQConfig(codebook_size=16, num_tokens=6, rank=4), 16)
    quantizer.start_from_tokens(z, seeded(0))
    assert not quantizer(z).z_q[:, 2].any()
    quantizer.start_from_tokens(z[:1], seeded(0))
    assert torch.isfinite(quantizer.weight).all()
    assert torch.isfinite(quantizer.basis).all()


def test_a_state_of_before_the_first_tokens_can_be_kept() -> None:
    first, second = (ChannelVQ(64, 16, kind="simvq-tokenwise", seed=seed) for seed in (0, 1))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.codes(), second.codes())
    z = torch.randn(5, 3, 4, 4, generator=seeded(0))
    first(z)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(z).z_q, second.eval()(z).z_q)


def test_a_first_batch_that_is_not_finite_is_refused_by_every_kind() -> None:
    for kind in ("plain", "ema", "simvq", "simvq-tokenwise", "ibq", "lc", "fsq", "lfq"):
        with pytest.raises(NotFiniteError, match="NaN or infinity"):
            ChannelVQ(64, 16, kind=kind)(torch.full((8, 8, 4, 4), torch.nan))
