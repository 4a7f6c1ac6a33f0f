"""The plain codebook and the straight-through estimator, on both axes."""

from typing import Any

import numpy as np
import pytest
import torch

from channelvq import ChannelVQ
from channelvq.errors import InputError
from channelvq.quantize.axis import Axis, from_vectors, to_vectors
from channelvq.quantize.quantized import straight_through

AXES: tuple[Axis, ...] = ("channel", "patch")


def feature_map(seed: int = 0, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 16, 4, 4, generator=torch.Generator().manual_seed(seed))


def quantizer(axis: Axis = "channel", **settings: object) -> ChannelVQ:
    torch.manual_seed(0)
    vq = ChannelVQ(20, 16, axis=axis, kind="plain", **settings)
    vq.start_from(feature_map(1, batch=8), torch.Generator().manual_seed(0))
    return vq


@pytest.mark.parametrize("axis", AXES)
def test_axis_is_a_reshape_with_an_inverse(axis: Axis) -> None:
    z = torch.arange(2 * 5 * 2 * 3.0).view(2, 5, 2, 3)
    vectors = to_vectors(z, axis)
    assert vectors.shape == ((2, 5, 6) if axis == "channel" else (2, 6, 5))
    assert torch.equal(from_vectors(vectors, axis, (2, 3)), z)


@pytest.mark.parametrize("axis", AXES)
def test_forward_gives_codewords_to_the_bit(axis: Axis) -> None:
    vq, z = quantizer(axis), feature_map()
    z_q, indices, _ = vq(z)
    assert z_q.shape == z.shape
    assert indices.shape == (3, 16)
    assert indices.dtype == torch.int64
    assert torch.equal(to_vectors(z_q, axis), vq.indices_to_codes(indices))
    distances = torch.cdist(to_vectors(z, axis).double(), vq.codes().double()[None])
    assert torch.equal(distances.argmin(2), indices)


def test_straight_through_value_and_gradient() -> None:
    z = torch.randn(1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    e = torch.randn(1000, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = straight_through(z, e)
    incoming = torch.randn(1000, generator=torch.Generator().manual_seed(2))
    out.backward(incoming)
    assert torch.equal(out.detach(), e.detach())
    assert not torch.equal((z + (e - z)).detach(), e.detach())  # why the usual form will not do
    assert z.grad is not None
    assert torch.equal(z.grad, incoming)
    assert e.grad is None


def test_each_loss_term_reaches_only_its_side() -> None:
    vq, z = quantizer(), feature_map().requires_grad_()
    weight = vq.quantizer.weight
    losses = vq(z).losses
    for term, on_codebook in (("codebook", True), ("commitment", False)):
        to_z, to_e = torch.autograd.grad(losses[term], (z, weight), allow_unused=True, retain_graph=True)
        assert (to_e is not None) == on_codebook
        assert (to_z is not None) != on_codebook
        assert (to_e if on_codebook else to_z).abs().sum() > 0


def test_loss_is_the_papers_formula_with_beta_on_the_commitment() -> None:
    z = feature_map()
    plain, heavy = quantizer(beta=0.25)(z), quantizer(beta=2.0)(z)
    error = (z - plain.z_q).square().mean()
    torch.testing.assert_close(plain.losses["codebook"], error)
    torch.testing.assert_close(plain.losses["commitment"], 0.25 * error)
    torch.testing.assert_close(heavy.losses["codebook"], error)
    torch.testing.assert_close(heavy.losses["commitment"], 2 * error)
    torch.testing.assert_close(plain.loss, 1.25 * error)


def test_dropped_channels_are_zero_and_do_not_count() -> None:
    vq, z = quantizer(), feature_map()
    keep = torch.arange(16) < torch.tensor([[3], [16], [1]])
    masked, full = vq(z, keep), vq(z)
    assert torch.equal(masked.indices, full.indices)
    assert torch.equal(masked.z_q, full.z_q * keep[:, :, None, None])
    error = (z - full.z_q).square().mean((2, 3))
    torch.testing.assert_close(masked.losses["codebook"], (error * keep).sum() / keep.numel())


def test_starts_from_the_first_training_batch_once() -> None:
    torch.manual_seed(0)
    vq, z = ChannelVQ(20, 16, kind="plain"), feature_map(batch=8)
    before = vq.codes().clone()
    vq.eval()(z)
    assert torch.equal(vq.codes(), before)
    vq.train()
    _, indices, loss = vq(z)
    assert len(indices.unique()) == 20
    assert loss < 1.25 * z.var()
    table = vq.codes().clone()
    vq(feature_map(9))
    assert torch.equal(vq.codes(), table)
    again = ChannelVQ(20, 16, kind="plain")
    again.load_state_dict(vq.state_dict())
    again.train()(feature_map(10))
    assert torch.equal(again.codes(), table)


def test_the_uniform_start_collapses_where_the_start_from_data_does_not() -> None:
    torch.manual_seed(0)
    z = 3 + feature_map(batch=16)  # encoder outputs away from the origin, as after a few training steps
    uniform, data = (ChannelVQ(64, 16, kind="plain", start=start) for start in ("uniform", "data"))
    assert len(uniform(z).indices.unique()) <= 6
    assert len(data(z).indices.unique()) >= 60


def test_lookup_stays_in_float32_under_autocast() -> None:
    vq, z = quantizer(), feature_map()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z_q, indices, loss = vq(z)
    assert z_q.dtype == loss.dtype == torch.float32
    assert torch.equal(indices, vq(z).indices)


@pytest.mark.parametrize("dim", ["64", 0, -1, 64.0, True])
def test_codebook_dim_is_a_whole_number(dim: Any) -> None:
    with pytest.raises(InputError, match="codebook_dim, the numbers in a codeword"):
        ChannelVQ(128, dim)


@pytest.mark.parametrize("shape", [(0, 4, 2, 2), (2, 0, 2, 2)])
def test_an_empty_batch_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"ChannelVQ: expected a feature map .* got \("):
        ChannelVQ(8, 4)(torch.zeros(shape))


@pytest.mark.parametrize("indices", [torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), [[0, 1]]])
def test_indices_are_whole_numbers(indices: Any) -> None:
    with pytest.raises(InputError, match="indices_to_codes: expected"):
        quantizer().indices_to_codes(indices)


def test_whole_numbers_of_numpy_and_small_ids_are_taken() -> None:
    vq = ChannelVQ(np.int64(20), np.int64(16))  # type: ignore[arg-type]
    assert torch.equal(vq.indices_to_codes(torch.tensor([[7]], dtype=torch.uint8)), vq.codes()[None, 7:8])


def test_wrong_shapes_name_what_was_needed() -> None:
    with pytest.raises(InputError, match="has 25 numbers, the codewords have 16"):
        quantizer()(torch.zeros(1, 16, 5, 5))
    with pytest.raises(InputError, match="feature map"):
        quantizer()(torch.zeros(16, 4, 4))
    with pytest.raises(InputError, match=r"feature map .* got list"):
        quantizer()([1.0])
    with pytest.raises(InputError, match="'channel' or 'patch'"):
        ChannelVQ(4, 4, axis="rows")  # type: ignore[arg-type]
