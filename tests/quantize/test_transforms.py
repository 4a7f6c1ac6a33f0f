"""torch.func's transforms of the quantizers: what plain autograd gives, or a refusal that says what to do."""

import copy

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from channelvq import ChannelVQ
from channelvq.errors import InputError
from channelvq.quantize.quantized import straight_through

KINDS = ("plain", "ema", "simvq", "simvq-tokenwise", "ibq", "lc", "fsq", "lfq")
MOVED = ("ema", "ibq")  # by a training call itself


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(kind: str, train: bool) -> ChannelVQ:
    torch.manual_seed(0)
    vq = ChannelVQ(16, 16, kind=kind, num_tokens=4)
    vq.start_from(numbers(8, 4, 4, 4, seed=1), torch.Generator().manual_seed(0))
    return vq.train(train)


def loss(vq: ChannelVQ, z: Tensor) -> Tensor:
    z_q, _, loss = vq(z)
    return z_q.square().sum() + loss


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own use, under jvp
def test_the_straight_through_is_seen_through() -> None:
    z, e, w = (numbers(5, 7, seed=seed) for seed in range(3))

    def weighted(z: Tensor, e: Tensor, w: Tensor) -> Tensor:
        return (straight_through(z, e).sin() * w).sum()

    assert torch.equal(grad(weighted)(z, e, w), e.cos() * w)
    assert not grad(weighted, argnums=1)(z, e, w).any()
    assert torch.equal(vmap(grad(weighted))(z, e, w), e.cos() * w)
    assert torch.equal(vmap(straight_through)(z, e), e)
    assert torch.equal(vmap(straight_through, (0, None))(z, e[0]), e[:1].expand(5, 7))
    assert torch.equal(vmap(straight_through, (None, 1), 1)(z[:, 0], e), e)
    assert torch.equal(jvp(lambda z: straight_through(z, e), (z,), (w,))[1], w)
    assert torch.equal(vjp(lambda z: straight_through(z, e), z)[1](w)[0], w)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_grad_of_a_quantizer_is_that_of_autograd(kind: str, train: bool) -> None:
    if train and kind in MOVED:
        pytest.skip("refused, see below")
    vq, z = quantizer(kind, train), numbers(3, 4, 4, 4)
    plain = z.clone().requires_grad_()
    loss(copy.deepcopy(vq), plain).backward()
    assert plain.grad is not None
    assert torch.equal(grad(lambda z: loss(vq, z))(z), plain.grad)


@pytest.mark.parametrize("kind", MOVED)
def test_a_codebook_that_the_call_would_move_is_refused_and_stays(kind: str) -> None:
    vq = quantizer(kind, train=True)
    before = copy.deepcopy(vq.state_dict())
    with pytest.raises(InputError, match=r"torch.func cannot transform this call .* with .eval\(\)"):
        grad(lambda z: loss(vq, z))(numbers(3, 4, 4, 4))
    for name, value in vq.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_vmap_of_a_quantizer_is_refused() -> None:
    with pytest.raises(InputError, match="without vmap call it on the whole batch"):
        vmap(quantizer("plain", train=False))(numbers(3, 1, 4, 4, 4))
