"""Ways through the rounding: values and gradients in closed form."""

import pytest
import torch

from channelvq import ChannelVQ
from lab.estimators import ESTIMATORS, Estimated, diveq, rotation_trick


def vectors(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z, codes = (torch.randn(64, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return z.requires_grad_(), codes.requires_grad_()


def test_the_rotation_trick_keeps_angles_to_the_gradient_and_scales_it() -> None:
    z, codes = vectors(0)
    out = rotation_trick(z, codes)
    torch.testing.assert_close(out, codes)
    towards = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((out * towards).sum(), z)
    # The same rotation takes z to its code and the gradient of z to that of z_q (section 4 of the paper).
    scale = codes.norm(dim=-1) / z.norm(dim=-1)
    torch.testing.assert_close(gradient.norm(dim=-1), scale * towards.norm(dim=-1))
    torch.testing.assert_close((gradient * z).sum(-1), (towards * codes).sum(-1))


def test_diveq_is_the_code_but_for_its_noise_and_teaches_both_ends_alike() -> None:
    z, codes = vectors(2)
    torch.manual_seed(0)
    out = diveq(z, codes)
    away = (codes - z).detach()
    assert ((out - codes).norm(dim=-1) < 0.5 * away.norm(dim=-1)).all()
    moved = (out.detach() - z.detach()) / away.norm(dim=-1, keepdim=True)
    towards = torch.ones_like(codes)
    of_z, of_codes = torch.autograd.grad((out * towards).sum(), (z, codes))
    pull = (moved * towards).sum(-1, keepdim=True) * away / away.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(of_codes, pull)
    torch.testing.assert_close(of_z, towards - pull)


@pytest.mark.parametrize("way", ESTIMATORS)
@pytest.mark.parametrize("kind", ["ema", "plain"])
def test_in_use_a_module_gives_what_the_quantizer_gives(kind: str, way: str) -> None:
    z = torch.randn(16, 8, 4, 4, generator=torch.Generator().manual_seed(3))
    vq = ChannelVQ(32, 16, kind=kind)
    module = Estimated(vq, way)
    _, ids, loss = module(z)
    assert (loss == 0) == (kind == "plain" and way == "DiVeQ")
    module.eval()
    z_q, again, _ = module(z)
    assert torch.equal(z_q, vq(z).z_q)
    assert kind == "ema" or torch.equal(ids, again)
