"""Index backpropagation: gradients to every code, and a temperature that fits any dimension and scale."""

import math

import pytest
import torch
from torch import Tensor

from channelvq import ChannelVQ
from channelvq.quantize.ibq import IBQCodebook, IBQConfig


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def started(dim: int = 256, scale: float = 1.0, **settings: object) -> IBQCodebook:
    config = IBQConfig(codebook_size=512, kmeans_iterations=1, **settings)  # type: ignore[arg-type]
    vq = IBQCodebook(config, dim)
    vq.start_from(scale * torch.randn(1024, dim, generator=seeded(0)), seeded(0))
    return vq


def spread(vq: IBQCodebook, z: Tensor) -> float:
    """exp(E[H(p)])."""
    log_p = torch.log_softmax(vq._scores(z).detach() / vq.tau, dim=-1)
    return float((-(log_p.exp() * log_p).sum(-1)).mean().exp())


@pytest.mark.parametrize("dim", [4, 256])
@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_the_softmax_spreads_alike_at_any_dimension_and_scale(dim: int, scale: float) -> None:
    vq = started(dim, scale)
    vq(scale * torch.randn(4, 64, dim, generator=seeded(1)))
    assert spread(vq, scale * torch.randn(4, 64, dim, generator=seeded(2))) == pytest.approx(8, rel=0.15)


def test_the_temperature_follows_the_features() -> None:
    vq = started()
    vq(torch.randn(4, 64, 256, generator=seeded(1)))
    first = float(vq.tau)
    vq.weight.data.mul_(3)
    for seed in range(80):
        vq(3 * torch.randn(1, 64, 256, generator=seeded(seed)))
    assert float(vq.tau) == pytest.approx(9 * first, rel=0.15)
    assert spread(vq, 3 * torch.randn(4, 64, 256, generator=seeded(99))) == pytest.approx(8, rel=0.15)
    assert float(started(temperature=0.3).tau) == pytest.approx(0.3)


def test_unscaled_logits_saturate_or_flatten_at_dimension_256() -> None:
    z = torch.randn(4, 64, 256, generator=seeded(1))
    forms = {logits: started(logits=logits, temperature=1.0) for logits in ("dot", "cosine")}
    assert spread(forms["dot"], z) < 1.5
    assert spread(forms["cosine"], z) > 500
    # The longest codewords win the dot product; a temperature cannot change which one is likeliest.
    with torch.no_grad():
        forms["dot"].weight[:8] *= 30
    assert (forms["dot"](z).indices < 8).double().mean() > 0.95
    ours = started()
    with torch.no_grad():
        ours.weight[:8] *= 30
    assert (ours(z).indices >= 8).all()


def test_every_code_gets_a_gradient_from_the_decoder() -> None:
    z = torch.randn(2, 16, 256, generator=seeded(1))
    for path in ("straight", "index"):
        vq = started(path=path)
        out = vq(z)
        (out.z_q * torch.randn(z.shape, generator=seeded(2))).sum().backward()
        assert vq.weight.grad is not None
        assert len(out.indices.unique()) <= 32
        assert (vq.weight.grad.abs().sum(1) > 0).sum() == 512


@pytest.mark.parametrize("logits", ["distance", "dot", "cosine"])
def test_the_index_is_the_likeliest_code(logits: str) -> None:
    vq = started(16, logits=logits)
    z = torch.randn(2, 100, 16, generator=seeded(3))
    found = vq.eval()(z).indices
    scores = vq._scores(z).detach()
    torch.testing.assert_close(scores.gather(2, found[:, :, None])[:, :, 0], scores.amax(2), rtol=0, atol=1e-5)


def test_gradient_is_that_of_the_one_hot_straight_through_product() -> None:
    vq = started(8, path="index", entropy_weight=0.0, index_weight=0.0)
    z = torch.randn(1, 6, 8, generator=seeded(4)).requires_grad_()
    vq(z.detach())  # sets the temperature
    tau, incoming = vq.tau.clone(), torch.randn(1, 6, 8, generator=seeded(5))
    ours = torch.autograd.grad((vq(z).z_q * incoming).sum(), (z, vq.weight))
    p = torch.softmax((z @ vq.weight.T - vq.weight.square().sum(1) / 2) / tau, dim=2)
    one_hot = torch.nn.functional.one_hot(vq.eval()(z).indices, 512)
    written_out = (one_hot - p.detach() + p) @ vq.weight
    theirs = torch.autograd.grad((written_out * incoming).sum(), (z, vq.weight))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_entropy_term_is_confident_tokens_less_even_use() -> None:
    vq = ChannelVQ(4, 4, kind="ibq", temperature=1.0, entropy_weight=1.0, start="uniform").train()
    with torch.no_grad():
        vq.quantizer.weight.copy_(40 * torch.eye(4))  # type: ignore[operator, union-attr]
    sure = 40 * torch.eye(4).view(1, 4, 2, 2)
    unsure = torch.zeros(1, 4, 2, 2)  # between all codes: its use is even, but no token is confident
    for z, expected in ((sure, -math.log(4)), (sure[:, :1].expand(1, 4, 2, 2), 0.0), (unsure, 0.0)):
        assert vq(z).losses["entropy"].item() == pytest.approx(expected, abs=1e-4)
