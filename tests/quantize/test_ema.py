"""Moving averages and the revival of dead codes."""

import torch

from channelvq import ChannelVQ
from channelvq.lookup.nearest import nearest_codeword
from channelvq.quantize.ema import EMACodebook, EMAConfig


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codebook(table: torch.Tensor, **settings: float) -> EMACodebook:
    config = EMAConfig(codebook_size=len(table), start="uniform", **settings)  # type: ignore[arg-type]
    made = EMACodebook(config, table.shape[1])
    made._set(slice(None), table)
    return made


def test_one_update_is_the_papers_formula() -> None:
    e = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    z = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [9.0, 1.0], [0.0, 100.0]]])
    keep = torch.tensor([[True, True, True, False]])
    vq = codebook(e, decay=0.75, revive_after=0.0)
    out = vq(z, keep)
    assert out.indices.tolist() == [[0, 0, 1, 2]]
    # N_i = 0.75 * 1 + 0.25 n_i and m_i = 0.75 e_i + 0.25 sum z, with n = (2, 1, 0): the last token was dropped.
    assert vq.counts.tolist() == [1.25, 1.0, 0.75]
    assert vq.sums.tolist() == [[0.25, 0.75], [9.75, 0.25], [0.0, 7.5]]
    expected = torch.tensor([[0.2, 0.6], [9.75, 0.25], [0.0, 10.0]])
    torch.testing.assert_close(vq.codes(), expected, rtol=0, atol=1e-6)
    assert torch.equal(out.z_q, vq.codes()[out.indices])
    error = (z - out.z_q).square().mean(2)[0, :3].sum() / 4
    torch.testing.assert_close(out.losses["commitment"], 0.25 * error)
    vq.eval()(z)
    assert vq.counts.tolist() == [1.25, 1.0, 0.75]


def test_without_revival_an_idle_code_stays_where_it_is() -> None:
    e = torch.tensor([[0.0, 0.0], [3.0, -7.0]])
    vq = codebook(e, decay=0.5, revive_after=0.0)
    for seed in range(300):  # 0.5^300 is nothing in float32
        vq(0.1 * torch.randn(1, 4, 2, generator=seeded(seed)))
    assert torch.isfinite(vq.codes()).all()
    torch.testing.assert_close(vq.codes()[1], e[1], rtol=1e-5, atol=0)
    vq(e[1].expand(1, 4, 2) + 0.5)
    torch.testing.assert_close(vq.codes()[1], e[1] + 0.5)


def test_dead_codes_come_back_and_stay() -> None:
    torch.manual_seed(0)
    data = torch.randn(400, 8, 4, 4, generator=seeded(1)) + 5
    dead = ChannelVQ(64, 16, kind="ema", start="uniform", revive_after=0.0)
    alive = ChannelVQ(64, 16, kind="ema", start="uniform", revive_after=4.0)
    for step in range(60):
        batch = data[(8 * step) % 400 :][:8]
        for vq in (dead, alive):
            vq.train()(batch)
    use = {name: len(vq.eval()(data).indices.unique()) for name, vq in (("dead", dead), ("alive", alive))}
    assert use["dead"] <= 6
    assert use["alive"] >= 60
    # A revived code that its old average drew back would be near zero again.
    assert alive.codes().mean(1).min() > 3


def test_a_code_is_dead_after_so_many_tokens_whatever_the_batch() -> None:
    table = torch.tensor([[0.0, 0.0], [50.0, 50.0]])
    for batch in (1, 8, 32):
        vq = codebook(table, revive_after=16.0)
        for step in range(32 // batch):
            assert vq.codes()[1].mean() > 49  # 16 * 2 tokens have not gone by yet
            vq(0.01 * torch.randn(1, batch, 2, generator=seeded(step)))
        assert vq.codes()[1].mean() < 1


def test_revived_codes_are_distinct_and_the_rest_waits() -> None:
    table = torch.cat([torch.zeros(1, 2), 100 + torch.randn(9, 2, generator=seeded(0))])
    vq = codebook(table, revive_after=1.0)
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).repeat(4, 1)[
        None
    ]  # two distinct vectors for nine dead codes
    vq(z)
    moved = (vq.codes() < 50).all(1).sum()
    assert moved == 3
    assert len(torch.unique(vq.codes(), dim=0)) == 10
    vq(z)
    nearest = nearest_codeword(z[0], vq.codes())
    assert len(nearest.unique()) == 2
