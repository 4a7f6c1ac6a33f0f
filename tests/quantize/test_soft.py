"""The softmax over all codes in tiles: values and gradients of the formula that holds it whole."""

import pytest
import torch
from torch import Tensor

from channelvq.quantize import soft
from channelvq.quantize.soft import soft_codes


def whole(
    z: Tensor, table: Tensor, values: Tensor, tau: float, weights: Tensor, by_distance: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(mixed, entropy, total) by autograd alone."""
    scores = z @ table.T - (table.square().sum(1) / 2 if by_distance else 0)
    log_p = torch.log_softmax(scores / tau, dim=1)
    p = log_p.exp()
    return p @ values, -(p * log_p).sum(1), (p * weights[:, None]).sum(0)


@pytest.mark.parametrize("by_distance", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fewest", [1, 3, 100])  # tokens a tile: each alone, a last one that is not full, all
def test_tiles_equal_the_whole_in_value_and_gradient(
    by_distance: bool, masked: bool, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft, "TILE", 1)
    monkeypatch.setattr(soft, "FEWEST", fewest)
    make = torch.Generator().manual_seed(0)
    draw = [torch.randn(size, dtype=torch.float64, generator=make) for size in ((4, 5, 6), (9, 6), (9, 3))]
    keep = torch.rand(4, 5, generator=make) < 0.5 if masked else None
    weights = torch.ones(20, dtype=torch.float64) if keep is None else keep.flatten().double()
    factors = [torch.randn(size, dtype=torch.float64, generator=make) for size in ((20, 3), (20,), (9,))]
    gradients = []
    for tiled in (True, False):
        z, table = (each.clone().requires_grad_() for each in draw[:2])
        if tiled:
            found = soft_codes(z, table, draw[2], 0.7, keep, by_distance=by_distance)
            terms = (found.mixed.flatten(0, 1), found.entropy, found.total)
        else:
            terms = whole(z.flatten(0, 1), table, draw[2], 0.7, weights, by_distance)
        loss = torch.stack([(term * factor).sum() for term, factor in zip(terms, factors, strict=True)]).sum()
        gradients.append((*terms, *torch.autograd.grad(loss, (z, table))))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_a_token_alone_and_a_temperature_that_moves_before_the_backward_pass() -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    z = torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.5, dtype=torch.float64)
    found = soft_codes(z, table, table, tau, None)
    assert found.mixed.tolist() == [[[0.5, 0.5]]]
    assert float(found.entropy.detach()) == pytest.approx(torch.tensor(2.0).log().item())
    tau.fill_(100.0)
    found.mixed[0, 0, 0].backward()
    # d p_0 / d z_0 = p_0 (1 - p_0) / tau at the temperature of the forward pass
    assert z.grad is not None
    assert z.grad.flatten().tolist() == pytest.approx([0.5, -0.5])
