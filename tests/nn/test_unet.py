"""The residual network: nothing at first, of the image's own size, and it knows where it is."""

import pytest
import torch

from channelvq.nn.unet import UNet, UNetConfig

SMALL = UNetConfig(base_channels=8, multipliers=(1, 2, 2), num_blocks=1, stem=2)


def network(config: UNetConfig = SMALL, size: int = 32, out: float = 0.0) -> UNet:
    torch.manual_seed(0)
    net = UNet(config, size)
    if out:
        torch.nn.init.normal_(net.out.weight, std=out)
    return net


@pytest.mark.parametrize(
    "config", [SMALL, UNetConfig(base_channels=4, multipliers=(1,), stem=8, attention=False), UNetConfig(8, (2, 1))]
)
def test_is_zero_at_first_and_learns_every_weight_then(config: UNetConfig) -> None:
    net, x = network(config), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(net(x), torch.zeros_like(x))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(3):  # residual branches inside start at zero too, and learn a step after what stands behind them
        optimizer.zero_grad()
        (net(x) - x).square().mean().backward()
        optimizer.step()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias before a group norm of its own group, or of keys before a softmax, changes nothing: such are not asked for.
    assert [name for name in silent if not name.endswith("bias")] == []


def test_the_same_picture_is_read_otherwise_in_another_place() -> None:
    # Without attention and far from the border: convolutions alone cannot tell these places apart.
    net = network(UNetConfig(base_channels=8, multipliers=(1,), num_blocks=1, attention=False, stem=2), 64, out=0.1)
    flat = torch.full((1, 3, 64, 64), 0.3)
    found = net(flat)[0].detach()
    torch.testing.assert_close(found[:, 24:28, 24:28], found[:, 32:36, 32:36])
    with torch.no_grad():
        for table in net.positions:
            table.normal_(generator=torch.Generator().manual_seed(2))
    found = net(flat)[0].detach()
    assert float((found[:, 24:28, 24:28] - found[:, 32:36, 32:36]).abs().max()) > 1e-2


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    net, x = network(out=0.1), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-4, atol=1e-5)
    assert net(x).shape == x.shape
