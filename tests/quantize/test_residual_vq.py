"""Several codes for each token: residual and grouped quantization."""

import pytest
import torch
from torch import Tensor

from channelvq import ChannelVQ, ResidualChannelVQ
from channelvq.errors import InputError
from channelvq.quantize.axis import Axis, to_vectors

KINDS = ("plain", "ema", "simvq", "simvq-tokenwise", "ibq", "lc", "fsq", "lfq")
CODES, DIM, TOKENS = 16, 16, 6


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def feature_map(seed: int = 0, batch: int = 4) -> Tensor:
    return torch.randn(batch, TOKENS, 4, 4, generator=seeded(seed)) * torch.tensor([3.0, 2.0, 1.0, 0.5])


def quantizer(kind: str = "ema", quantizers: int = 4, groups: int = 2, **settings: object) -> ResidualChannelVQ:
    torch.manual_seed(0)
    vq = ResidualChannelVQ(CODES, DIM, num_quantizers=quantizers, groups=groups, kind=kind, **settings)
    vq.start_from(feature_map(1, batch=32), seeded(0))
    return vq


def peer(vq: ResidualChannelVQ) -> torch.nn.Module:
    """GroupedResidualVQ of vector-quantize-pytorch with our codewords, which gives indices (G, B, K, Q)."""
    library = pytest.importorskip("vector_quantize_pytorch")
    theirs = library.GroupedResidualVQ(
        dim=DIM, groups=vq.groups, num_quantizers=vq.num_quantizers, codebook_size=CODES, rotation_trick=False
    )
    tables = vq.codes().detach().unflatten(0, (vq.num_quantizers, vq.groups))
    for group, residual in enumerate(theirs.rvqs):
        for q, layer in enumerate(residual.layers):
            layer._codebook.embed.data.copy_(tables[q, group][None])
    return theirs.eval()


@pytest.mark.parametrize(("quantizers", "groups"), [(4, 1), (1, 4), (3, 2)])
def test_it_is_vector_quantize_pytorchs(quantizers: int, groups: int) -> None:
    vq, z = quantizer(quantizers=quantizers, groups=groups).eval(), feature_map()
    z_q, indices, _ = vq(z)
    with torch.no_grad():
        theirs, their_indices, _ = peer(vq)(z.flatten(2))
    assert torch.equal(their_indices.permute(1, 2, 3, 0).flatten(2), indices)
    assert torch.equal(theirs, to_vectors(z_q, "channel"))


@pytest.mark.parametrize("axis", ["channel", "patch"])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_give_the_forward_pass_to_the_bit(kind: str, axis: Axis) -> None:
    dim = DIM if axis == "channel" else TOKENS * 2
    z = feature_map() if axis == "channel" else feature_map().repeat(1, 2, 1, 1)
    vq = ResidualChannelVQ(CODES, dim, num_quantizers=3, groups=2, kind=kind, axis=axis)
    vq.start_from(feature_map(1, batch=32).repeat(1, 1 if axis == "channel" else 2, 1, 1), seeded(0))
    for training in (True, False):
        z_q, indices, loss = vq.train(training)(z)
        tokens = to_vectors(z, axis).shape[1]
        assert (z_q.shape, indices.shape, indices.dtype, loss.shape) == (z.shape, (4, tokens, 6), torch.int64, ())
        assert torch.equal(vq.indices_to_codes(indices), to_vectors(z_q, axis))
        assert torch.equal(vq.indices_to_codes(indices[2:, :3]), to_vectors(z_q, axis)[2:, :3])
        if kind != "simvq-tokenwise":
            chosen = [table[indices[..., place]] for place, table in enumerate(vq.codes())]
            first = chosen[0] + chosen[2], chosen[1] + chosen[3]
            assert torch.equal(vq.indices_to_codes(indices[..., :4]), torch.cat(first, 2))
            assert torch.equal(vq.indices_to_codes(indices[..., :2]), torch.cat(chosen[:2], 2))


@pytest.mark.parametrize("kind", ["plain", "ema", "simvq", "lc", "ibq"])
def test_each_code_is_the_nearest_to_what_is_left(kind: str) -> None:
    vq, z = quantizer(kind, 3, 1).eval(), feature_map()
    _, indices, _ = vq(z)
    left = z.flatten(2)
    for place, table in enumerate(vq.codes().detach()):
        assert torch.equal(torch.cdist(left.double(), table.double()[None]).argmin(2), indices[..., place])
        left = left - table[indices[..., place]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantizer_leaves_less(kind: str) -> None:
    vq, z = quantizer(kind, 3, 2).eval(), feature_map(5, batch=32)
    with torch.no_grad():
        _, indices, _ = vq(z)
        errors = [float((vq.indices_to_codes(indices[..., :s]) - z.flatten(2)).square().mean()) for s in (2, 4, 6)]
    assert float(z.var()) > errors[0] > errors[1] > errors[2]


def test_one_code_is_channel_vq_to_the_bit() -> None:
    torch.manual_seed(0)
    plain = ChannelVQ(CODES, DIM, kind="plain")
    one = ResidualChannelVQ(CODES, DIM, num_quantizers=1, kind="plain")
    one.quantizers[0][0].load_state_dict(plain.quantizer.state_dict())  # type: ignore[index]
    for step in range(3):
        gradients = []
        for vq in (plain, one):
            z = feature_map(step, batch=8).requires_grad_()
            z_q, indices, loss = vq(z)
            ((z_q * feature_map(9, batch=8)).sum() + loss).backward()
            gradients.append((z.grad, z_q, indices.flatten(1), loss))
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_groups_are_quantizers_of_their_own() -> None:
    vq, z = quantizer("plain", 1, 2), feature_map()
    _, indices, _ = vq(z)
    halves = [ChannelVQ(codebook_dim=DIM // 2, config=vq._of_groups()[0][0].config) for _ in range(2)]
    outs = []
    for half, (of_group,), part in zip(halves, vq._of_groups(), z.flatten(2).chunk(2, 2), strict=True):
        half.quantizer.load_state_dict(of_group.state_dict())
        outs.append(half(part))
    assert torch.equal(vq(z).z_q.flatten(2), torch.cat([out.z_q for out in outs], 2))
    assert torch.equal(indices, torch.stack([out.indices for out in outs], 2))
    torch.testing.assert_close(vq(z).loss, (outs[0].loss + outs[1].loss) / 2)


@pytest.mark.parametrize("kind", ["plain", "ema", "simvq", "ibq"])
def test_the_decoders_gradient_reaches_z_once_and_the_losses_by_their_mean(kind: str) -> None:
    vq, z, incoming = quantizer(kind, 4, 2), feature_map().requires_grad_(), feature_map(3)
    out = vq(z)
    (by_decoder,) = torch.autograd.grad((out.z_q * incoming).sum(), z, retain_graph=True)
    assert torch.equal(by_decoder, incoming)  # a quarter, four times over
    (by_loss,) = torch.autograd.grad(out.losses["commitment"], z)
    with torch.no_grad():
        left = [z.flatten(2) - vq.indices_to_codes(out.indices[..., : 2 * q]) for q in (1, 2, 3, 4)]
        torch.testing.assert_close(out.losses["commitment"], 0.25 * sum(each.square().mean() for each in left))
        of_mean = 0.25 * 2 * sum(left) / 4 / z.numel()
    torch.testing.assert_close(by_loss.flatten(2), of_mean)


def test_every_parameter_learns() -> None:
    vq = quantizer("simvq", 3, 2)
    out = vq(feature_map())
    out.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in vq.parameters())


def test_dropped_tokens_are_zero_and_do_not_count() -> None:
    keep = torch.arange(TOKENS) < torch.tensor([[2], [6], [1], [4]])
    z = feature_map()
    other = torch.where(keep[:, :, None, None], z, feature_map(50))
    first, second = quantizer()(z, keep), quantizer()(other, keep)
    assert not first.z_q[~keep].any()
    assert torch.equal(first.z_q, second.z_q)
    assert torch.equal(first.loss, second.loss)


def test_starts_from_the_first_training_batch_and_is_loaded_to_the_bit() -> None:
    z = feature_map(2, batch=32)
    vq = ResidualChannelVQ(CODES, DIM, num_quantizers=2, groups=2)
    error = (vq(z).z_q - z).square().mean()
    assert error < 0.4 * z.var()
    again = ResidualChannelVQ(CODES, DIM, num_quantizers=2, groups=2)
    again.load_state_dict(vq.state_dict())
    for step in (3, 4):
        ours, theirs = vq(feature_map(step)), again(feature_map(step))
        assert torch.equal(ours.z_q, theirs.z_q)
        assert torch.equal(ours.indices, theirs.indices)


def test_it_trains_where_one_code_is_not_enough() -> None:
    errors = []
    for make in (lambda: ChannelVQ(CODES, DIM), lambda: ResidualChannelVQ(CODES, DIM, num_quantizers=3)):
        torch.manual_seed(0)
        encoder, vq, decoder = torch.nn.Conv2d(TOKENS, 8, 1), make(), torch.nn.Conv2d(8, TOKENS, 1)
        model = torch.nn.ModuleList([encoder, vq, decoder])
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for step in range(40):
            x = feature_map(step, batch=16)
            z_q, _, loss = vq(encoder(x))
            optimizer.zero_grad()
            ((decoder(z_q) - x).square().mean() + loss).backward()
            optimizer.step()
        x = feature_map(999, batch=16)
        errors.append(float((decoder(vq.eval()(encoder(x)).z_q) - x).square().mean().detach()))
    assert errors[1] < 0.7 * errors[0]


MISTAKES = (
    ({"num_quantizers": 0}, "num_quantizers: expected a whole number of at least 1, got 0"),
    ({"groups": 3}, "3 groups do not divide codebook_dim, 16 numbers"),
    ({"kind": "rvq"}, "ResidualChannelVQ: 1 setting"),
    ({"axis": "rows"}, "axis is 'channel' or 'patch'"),
    ({"codebook_size": None}, "give codebook_dim, and either codebook_size"),
)


@pytest.mark.parametrize(("settings", "message"), MISTAKES)
def test_mistakes_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ResidualChannelVQ(**({"codebook_size": CODES, "codebook_dim": DIM} | settings))  # type: ignore[arg-type]


def test_wrong_ids_are_named() -> None:
    vq = quantizer(quantizers=2, groups=2)
    for shape in ((1, 2, 3), (1, 2, 6), (1, 2, 0)):
        with pytest.raises(InputError, match="a token has 2 codes for each of 1 to 2 quantizers"):
            vq.indices_to_codes(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(InputError, match=r"expected ids \(B, k, s\), got shape \(1, 2\)"):
        vq.indices_to_codes(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="id 16 is out of range"):
        vq.indices_to_codes(torch.full((1, 2, 4), 16))
