"""Codes drawn at random, by their distance."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from channelvq import ChannelVQ, ResidualChannelVQ
from channelvq.errors import InputError
from channelvq.quantize.draw import Draw

KINDS = ("plain", "ema", "simvq", "lc")
NEED = r"^codes drawn at random need both temperature=0\.1 and generator=torch\.Generator\(\), say$"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def feature_map(seed: int = 0, batch: int = 8) -> Tensor:
    return torch.randn(batch, 8, 4, 4, generator=seeded(seed))


def quantizer(kind: str, **settings: object) -> ChannelVQ:
    torch.manual_seed(0)
    vq = ChannelVQ(32, 16, kind=kind, **settings)
    vq.start_from(feature_map(1, 32), seeded(0))
    return vq


@pytest.mark.parametrize(("temperature", "held"), [(0.3, 2**18), (2.0, 2**18), (0.3, 7000)])
def test_shares_are_the_softmax_of_the_squared_distance(
    temperature: float, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channelvq.quantize.draw.HELD", held)  # numbers in a tile
    codebook, z, count = torch.randn(7, 3, generator=seeded(0)), torch.randn(1, 3, generator=seeded(1)), 40_000
    drawn = Draw(temperature, seeded(2))(z.expand(count, 3), codebook)
    expected = torch.softmax(-(z - codebook).double().square().sum(1) / (2 * temperature), 0)
    found = torch.bincount(drawn, minlength=7).double() / count
    assert ((found - expected).abs() < 4.5 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


def test_the_generator_decides() -> None:
    codebook, z = torch.randn(50, 4, generator=seeded(0)), torch.randn(300, 4, generator=seeded(1))
    first = Draw(0.5, seeded(2))(z, codebook)
    assert torch.equal(Draw(0.5, seeded(2))(z, codebook), first)
    assert not torch.equal(Draw(0.5, seeded(3))(z, codebook), first)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_is_what_is_returned_and_learned_from(kind: str) -> None:
    vq, z = quantizer(kind), feature_map().requires_grad_()
    nearest = vq.eval()(z).indices
    out = vq.train()(z, temperature=0.5, generator=seeded(0))
    assert 0.02 < (out.indices != nearest).float().mean() < 0.98
    assert torch.equal(vq.indices_to_codes(out.indices), out.z_q.flatten(2))
    expected = 0.25 * (z - out.z_q).square().mean()
    torch.testing.assert_close(out.losses["commitment"], expected)
    (gradient,) = torch.autograd.grad(out.z_q.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))
    cold = quantizer(kind).eval()(z, temperature=1e-6, generator=seeded(0))
    assert torch.equal(cold.indices, nearest)
    assert torch.equal(vq.eval()(z).indices, vq(z).indices)  # nothing is left of it


def test_averages_move_to_the_tokens_that_drew_them() -> None:
    vq, z = quantizer("ema", decay=0.0, revive_after=0), feature_map()
    indices = vq(z, temperature=5.0, generator=seeded(0)).indices
    for code in indices.unique()[:5]:
        torch.testing.assert_close(vq.codes()[code], z.flatten(2)[indices == code].mean(0))


def test_residual_quantizers_draw_on_from_one_generator() -> None:
    vq = ResidualChannelVQ(32, 16, num_quantizers=3, kind="plain")
    vq.start_from(feature_map(1, 32), seeded(0))
    generator = seeded(0)
    out = vq(feature_map(), temperature=0.5, generator=generator)
    assert torch.equal(vq.indices_to_codes(out.indices), out.z_q.flatten(2))
    assert not torch.equal(vq(feature_map(), temperature=0.5, generator=generator).indices, out.indices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.5}, NEED),
        ({"generator": torch.Generator()}, NEED),
        ({"temperature": 0.5, "generator": 3}, NEED),
        *[
            ({"temperature": t, "generator": torch.Generator()}, "temperature: expected a number above 0")
            for t in (0, -1.0, math.inf, math.nan, "1")
        ],
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantizer("ema")(feature_map(), **arguments)


def test_a_generator_of_another_device_is_named() -> None:
    message = r"the generator is on cpu, the vectors on meta; give torch\.Generator\('meta'\)"
    with pytest.raises(InputError, match=message):
        Draw(0.5, torch.Generator())(torch.empty(3, 4, device="meta"), torch.empty(7, 4, device="meta"))


def test_kinds_without_distances_refuse() -> None:
    for kind in ("ibq", "fsq", "lfq", "simvq-tokenwise"):
        with pytest.raises(InputError, match="draws no codes at random; plain, ema, simvq and lc do"):
            quantizer(kind)(feature_map(), temperature=0.5, generator=torch.Generator())


def test_another_thread_takes_the_nearest_codes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    vq, z, found = quantizer("plain").eval(), feature_map(), list[Tensor]()
    nearest = vq(z).indices
    real = Draw.__call__

    def meanwhile(self: Draw, vectors: Tensor, table: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(lambda: vq(z).indices).result(60))
        return real(self, vectors, table)

    monkeypatch.setattr(Draw, "__call__", meanwhile)
    drawn = vq(z, temperature=50.0, generator=seeded(0)).indices
    assert torch.equal(found[0], nearest)
    assert not torch.equal(drawn, nearest)
    assert torch.equal(vq(z).indices, nearest)
