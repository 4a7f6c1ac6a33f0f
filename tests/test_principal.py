"""Principal directions and what each of them is worth, against closed forms."""

import torch

from channelvq.principal import above_water, directions, signed, water_level


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_directions_are_in_falling_order_of_their_variance() -> None:
    turn = torch.linalg.qr(torch.randn(2, 5, 5, generator=seeded(0), dtype=torch.float64))[0]
    variances = torch.tensor([[9.0, 4.0, 2.0, 1.0, 0.5], [7.0, 5.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    found, columns = directions(turn @ variances.diag_embed() @ turn.mT)
    torch.testing.assert_close(found, variances)
    torch.testing.assert_close((columns.mT @ turn).abs(), torch.eye(5, dtype=torch.float64).expand(2, 5, 5))


def test_the_largest_entry_of_a_direction_is_positive() -> None:
    rows = torch.tensor([[1.0, -3.0, 2.0], [4.0, -3.0, 2.0], [0.0, 0.0, 0.0]])
    assert signed(rows, 1).tolist() == [[-1.0, 3.0, -2.0], [4.0, -3.0, 2.0], [0.0, 0.0, 0.0]]
    assert torch.equal(signed(rows.T, 0), signed(rows, 1).T)


def test_what_gets_bits_is_above_the_water_and_more_than_rounding() -> None:
    variances = torch.tensor([[4.0, 4.0, 1.0, 1.0], [4.0, 1e-8, 0.0, 0.0]], dtype=torch.float64)
    assert above_water(variances, 2.0, 1e-9).tolist() == [[True, True, False, False], [True, False, False, False]]
    assert above_water(variances, 40.0, 1e-9).tolist() == [[True] * 4, [True, True, False, False]]
    assert above_water(variances, 40.0, 1e-6).tolist() == [[True] * 4, [True, False, False, False]]


def test_water_level_in_closed_form() -> None:
    # Two of variance 4 and two of 1: with 2 bits the level is 1, of which only the large ones show above; one bit each.
    variances = torch.tensor([4.0, 4.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(water_level(variances, 2.0).item(), 1.0)
    torch.testing.assert_close(water_level(variances, 4.0).item(), 0.5)
    torch.testing.assert_close(water_level(variances, 1.0).item(), 2.0)
    # In general: what is above the level adds up to the bits.
    falling = torch.rand(3, 50, generator=seeded(1), dtype=torch.float64).sort(1, descending=True).values ** 4
    for bits in (0.5, 12.0, 300.0):
        level = water_level(falling, bits)
        torch.testing.assert_close(
            (falling / level).log2().clamp(min=0).sum(1) / 2, torch.full((3,), bits, dtype=torch.float64)
        )
    assert water_level(torch.zeros(2, 3, dtype=torch.float64), 5.0).tolist() == [[0.0], [0.0]]
