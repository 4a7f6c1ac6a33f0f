"""The resampler: the identity at home, bilinear elsewhere until it learns, and positions that know size and aspect."""

import math

import pytest
import torch
from torch.nn import functional as F

from channelvq.nn.resampler import AttentiveResidual, Resampler, ResamplerConfig, num_place_features, place_features

HOME, CHANNELS = 4, 12
SIZES = [(4, 4), (6, 6), (4, 8), (8, 4), (3, 5), (1, 1), (16, 2)]
CPU = torch.device("cpu")


def resampler(*, trained: bool = False, **settings: int | bool) -> Resampler:
    torch.manual_seed(0)
    made = Resampler(ResamplerConfig(width=16, num_heads=2, **settings), CHANNELS, HOME)  # type: ignore[arg-type]
    if trained:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def maps(size: tuple[int, int], count: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, CHANNELS, *size, generator=torch.Generator().manual_seed(seed))


def bilinear(z: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(z, size, mode="bilinear", antialias=True)


def test_is_the_identity_at_the_home_size_to_the_bit_before_and_after_training() -> None:
    z = maps((HOME, HOME))
    for made in (resampler(), resampler(trained=True), resampler(attention=False)):
        assert torch.equal(made.gather(z), z)
        assert torch.equal(made.spread(z, (HOME, HOME)), z)


@pytest.mark.parametrize("size", SIZES)
def test_is_bilinear_resampling_at_first(size: tuple[int, int]) -> None:
    made, z, home = resampler(), maps(size), maps((HOME, HOME))
    assert torch.equal(made.gather(z), bilinear(z, (HOME, HOME)))
    assert torch.equal(made.spread(home, size), bilinear(home, size))


def test_attention_adds_to_it_when_trained_and_is_not_there_without() -> None:
    made, z = resampler(trained=True), maps((6, 5))
    assert made.gather(z).shape == (2, CHANNELS, HOME, HOME)
    assert (made.gather(z) - bilinear(z, (HOME, HOME))).abs().mean() > 0.05
    home = maps((HOME, HOME))
    assert (made.spread(home, (6, 5)) - bilinear(home, (6, 5))).abs().mean() > 0.05
    assert list(resampler(attention=False).parameters()) == []


def test_the_local_products_are_attention_with_a_bias_by_distance() -> None:
    """What the three more numbers a head stand for, against the (heads, Q, K) bias that they spare."""
    layer = AttentiveResidual(ResamplerConfig(width=16, num_heads=2), CHANNELS, HOME, fixed=True).double()
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, n, 8, generator=generator, dtype=torch.float64) for n in (5, 7))
    q_at, k_at = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (5, 7))
    longer_q, longer_k = layer._local(q, q_at, k, k_at)
    found = (longer_q @ longer_k.transpose(2, 3)).softmax(-1)
    steepness = layer.log_steepness.double().exp()[:, None, None]
    expected = (q @ k.transpose(2, 3) - steepness * torch.cdist(q_at, k_at).square()).softmax(-1)
    torch.testing.assert_close(found, expected)


def test_every_parameter_learns() -> None:
    made = resampler().train()
    z, home = maps((6, 5)), maps((HOME, HOME))
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(3):  # what is before a layer of zeros learns a step after it
        optimizer.zero_grad()
        loss = (made.gather(z) - home).square().mean() + (made.spread(home, (6, 5)) - z).square().mean()
        loss.backward()
        optimizer.step()
    silent = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in silent if not name.endswith("keys.bias")] == []  # the same for all keys of a softmax


def test_learns_a_resampling_that_bilinear_is_not() -> None:
    """The nearest position's value: learnt at some sizes, better than bilinear at one in between, of another aspect."""
    made, home = resampler().train(), lambda seed: maps((HOME, HOME), 8, seed)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)

    def error(size: tuple[int, int], seed: int) -> torch.Tensor:
        return (made.spread(home(seed), size) - F.interpolate(home(seed), size, mode="nearest-exact")).square().mean()

    for step in range(240):
        optimizer.zero_grad()
        error(((8, 8), (12, 12), (8, 12))[step % 3], step).backward()
        optimizer.step()
    with torch.no_grad():
        learnt = float(error((8, 8), 1000)), float(error((12, 8), 1000))
    torch.manual_seed(0)
    before = float(
        (bilinear(home(1000), (12, 8)) - F.interpolate(home(1000), (12, 8), mode="nearest-exact")).square().mean()
    )
    assert learnt[0] < 0.5 * before
    assert learnt[1] < 0.7 * before


def test_an_image_is_the_same_among_others_and_under_an_autocast() -> None:
    made, z = resampler(trained=True), maps((6, 5), 8)
    with torch.no_grad():
        alone = made.gather(z)
        torch.testing.assert_close(made.gather(z[3:4]), alone[3:4])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(made.gather(z), alone)


def test_position_features_are_of_the_place_the_size_and_the_aspect() -> None:
    wide, tall = (place_features((4, 4), other, HOME, CPU) for other in ((4, 8), (8, 4)))
    assert wide.shape == (16, num_place_features(HOME))
    assert torch.equal(wide[:, :-2], tall[:, :-2])  # the same places of the home map
    assert wide[0, -2:].tolist() == pytest.approx([0.0, math.log(2)])
    assert tall[0, -2:].tolist() == pytest.approx([math.log(2), 0.0])
    # The centre of an odd map is the same place at every size; nothing grows with the size but the scale.
    small, large = (place_features((n, n), (n, n), HOME, CPU) for n in (3, 63))
    torch.testing.assert_close(small[4, :-2], large[63 * 31 + 31, :-2], rtol=0, atol=1e-5)
    assert large[:, :-2].abs().max() <= 1
    assert len(large[:, :-2].unique(dim=0)) == 63 * 63


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="width 10 must be a multiple of num_heads 4"):
        ResamplerConfig(width=10)
