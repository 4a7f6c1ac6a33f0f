"""Every kind of quantizer on both axes: what all of them promise."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from channelvq import ChannelVQ, CVQTokenizer
from channelvq.config import from_dict
from channelvq.errors import InputError, NotFiniteError
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.axis import Axis, to_vectors
from channelvq.quantize.codebook import PlainConfig
from channelvq.quantize.simvq import SimVQConfig
from channelvq.tokenizer import CVQConfig

KINDS = ("plain", "ema", "simvq", "simvq-tokenwise", "ibq", "lc", "fsq", "lfq")
WITHOUT_TABLE = "simvq-tokenwise"  # its tokens see one codebook through maps of their own: test_tokenwise.py
AXES: tuple[Axis, ...] = ("channel", "patch")
CODES = 32


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def feature_map(seed: int = 0, batch: int = 3) -> Tensor:
    """Feature maps with structure along both axes: a few patterns in a few places, and some noise."""
    patterns, places = torch.randn(4, 16, generator=seeded(91)), torch.randn(16, 4, generator=seeded(92))
    amounts = torch.randn(batch, 1, 4, generator=seeded(seed)) * torch.tensor([2.0, 1.0, 0.7, 0.5])
    maps = (places * amounts) @ patterns + 0.1 * torch.randn(batch, 16, 16, generator=seeded(seed + 1000))
    return maps.unflatten(2, (4, 4))


def close(vq: ChannelVQ, z: Tensor) -> bool:
    """Whether the quantization error is what a codebook of this size should reach on this data: signs reach less."""
    error = float((vq.eval()(z).z_q.detach() - z).square().mean())
    return error < (0.7 if vq.quantizer.config.kind == "lfq" else 0.3) * float(z.var())


def quantizer(kind: str, axis: Axis = "channel", **settings: object) -> ChannelVQ:
    torch.manual_seed(0)
    vq = ChannelVQ(CODES, 16, axis=axis, kind=kind, **settings)
    vq.start_from(feature_map(1, batch=20), seeded(0))
    return vq


@pytest.fixture(params=[(kind, axis) for kind in KINDS for axis in AXES], ids="-".join)
def vq(request: pytest.FixtureRequest) -> ChannelVQ:
    return quantizer(*request.param)


def test_forward_gives_rows_of_the_table_to_the_bit(vq: ChannelVQ) -> None:
    z, has_table = feature_map(), vq.quantizer.config.kind != WITHOUT_TABLE
    assert vq.codes().shape == (CODES, 16)
    for training in (True, False):
        z_q, indices, loss = vq.train(training)(z)
        assert z_q.shape == z.shape
        assert (indices.shape, indices.dtype) == ((3, 16), torch.int64)
        assert loss.shape == ()
        assert 8 < len(indices.unique()) <= CODES
        vectors = to_vectors(z_q, vq.axis)
        assert torch.equal(vq.indices_to_codes(indices), vectors)
        assert torch.equal(vq.codes()[indices], vectors) == has_table
        # Of any prefix and any row alone, too.
        assert torch.equal(vq.indices_to_codes(indices[2:, :5]), vectors[2:, :5])
        assert torch.equal(vq.indices_to_codes(indices[:, :1]), vectors[:, :1])


def test_codes_fit_the_data(vq: ChannelVQ) -> None:
    assert close(vq, feature_map(7, batch=20))


@pytest.mark.parametrize("kind", ["plain", "ema", "simvq", "ibq", "lc"])
def test_index_is_the_nearest_codeword(kind: str) -> None:
    vq, z = quantizer(kind).eval(), feature_map()
    distances = torch.cdist(to_vectors(z, "channel").double(), vq.codes().double()[None])
    assert torch.equal(distances.argmin(2), vq(z).indices)


PROJECTIONS = {"in_weight", "in_bias", "out_weight", "out_bias"}
# What each term, and z_q itself, sends a gradient to; z is the encoder's side, the rest is the quantizer's.
REACHES = {
    ("plain", ""): {"z_q": {"z"}, "codebook": {"weight"}, "commitment": {"z"}},
    ("ema", ""): {"z_q": {"z"}, "commitment": {"z"}},
    ("simvq", ""): {"z_q": {"z"}, "codebook": {"weight"}, "commitment": {"z"}},
    ("simvq-tokenwise", ""): {"z_q": {"z"}, "codebook": {"weight", "basis"}, "commitment": {"z"}},
    ("lc", ""): {"z_q": {"z"}, "codebook": {"weight", "bias"}, "commitment": {"z"}},
    ("ibq", "straight"): {
        "z_q": {"z", "weight"}, "codebook": {"weight"}, "commitment": {"z"}, "index": {"weight"}, "entropy": {"weight"},
    },
    ("ibq", "index"): {
        "z_q": {"z", "weight"}, "codebook": {"weight"}, "commitment": {"z"}, "index": {"z", "weight"},
        "entropy": {"z", "weight"},
    },
    ("fsq", ""): {"z_q": {"z", *PROJECTIONS}},
    ("lfq", ""): {
        "z_q": {"z", *PROJECTIONS}, "commitment": {"z", "in_weight", "in_bias"},
        "entropy": {"z", "in_weight", "in_bias"},
    },
}  # fmt: skip


@pytest.mark.parametrize(("kind", "path"), REACHES)
def test_each_term_reaches_its_side_alone(kind: str, path: str) -> None:
    vq = quantizer(kind, **({"path": path} if path else {}))
    z = feature_map().requires_grad_()
    out = vq(z)
    incoming = torch.randn(z.shape, generator=seeded(5))
    terms = {"z_q": (out.z_q * incoming).sum()} | out.losses
    sides: dict[str, Tensor] = {"z": z} | dict(vq.quantizer.named_parameters())
    found: dict[str, set[str]] = {}
    for term, value in terms.items():
        gradients = torch.autograd.grad(value, list(sides.values()), allow_unused=True, retain_graph=True)
        found[term] = {side for side, g in zip(sides, gradients, strict=True) if g is not None and g.abs().sum() > 1e-9}
        if term == "z_q" and path != "index" and kind not in ("fsq", "lfq"):
            assert torch.equal(gradients[0], incoming)
    assert found == REACHES[kind, path]
    assert set().union(*found.values()) == set(sides)


def test_dropped_tokens_are_zero_and_do_not_count(vq: ChannelVQ) -> None:
    keep = torch.arange(16) < torch.tensor([[3], [16], [1]])
    z, other = feature_map(), feature_map(50)
    mask = keep[:, :, None, None] if vq.axis == "channel" else keep.view(3, 1, 4, 4)
    state = {name: tensor.clone() for name, tensor in vq.state_dict().items()}
    first = vq(z, keep)
    after = {name: tensor.clone() for name, tensor in vq.state_dict().items()}
    vq.load_state_dict(state)
    second = vq(torch.where(mask, z, other), keep)
    assert not first.z_q.masked_select(~mask).any()
    assert torch.equal(first.z_q, second.z_q)
    assert first.losses.keys() == second.losses.keys()
    for name, loss in first.losses.items():
        assert torch.equal(loss, second.losses[name]), name
    for name, tensor in vq.state_dict().items():
        assert torch.equal(tensor, after[name]), name
    if first.losses:
        vq.load_state_dict(state)
        assert not torch.equal(vq(z).loss, first.loss)


def test_a_loaded_quantizer_goes_on_to_the_bit(vq: ChannelVQ) -> None:
    vq(feature_map(3))
    settings = vq.quantizer.config
    again = ChannelVQ(codebook_dim=16, axis=vq.axis, config=settings)
    again.load_state_dict(vq.state_dict())
    for seed in (4, 5):  # the second shows that a training step moved both alike
        ours, theirs = vq(feature_map(seed)), again(feature_map(seed))
        assert torch.equal(ours.z_q, theirs.z_q)
        assert torch.equal(ours.indices, theirs.indices)
        assert torch.equal(ours.loss, theirs.loss)


def test_starts_from_the_first_training_batch_once(vq: ChannelVQ) -> None:
    fresh = ChannelVQ(codebook_dim=16, axis=vq.axis, config=vq.quantizer.config)
    before = fresh.codes().clone()
    z = feature_map(2, batch=20)
    assert not close(fresh, z)
    assert torch.equal(fresh.codes(), before)
    fresh.train()(z)
    assert close(fresh, z)
    table = fresh.codes().clone()
    fresh.train()(feature_map(3))
    assert vq.quantizer.config.kind == "ema" or torch.equal(fresh.codes(), table)


def test_global_randomness_is_neither_used_nor_spent(vq: ChannelVQ) -> None:
    config, tables = vq.quantizer.config, []
    for seed in (1, 2):
        torch.manual_seed(seed)
        if not isinstance(config, PlainConfig):  # its start has always come from the global generator
            before = torch.get_rng_state()
            fresh = ChannelVQ(codebook_dim=16, axis=vq.axis, config=config)
            tables.append(fresh.codes().detach().clone())
            assert torch.equal(torch.get_rng_state(), before)
        before = torch.get_rng_state()
        vq(feature_map(seed))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(table, tables[0]) for table in tables)


def test_float32_under_autocast(vq: ChannelVQ) -> None:
    z = feature_map()
    expected = vq.eval()(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = vq(z)
        assert torch.equal(vq.codes(), vq.codes().float())
        table = vq.codes()
    assert found.z_q.dtype == found.loss.dtype == torch.float32
    assert torch.equal(found.z_q, expected.z_q)
    if vq.quantizer.config.kind != WITHOUT_TABLE:
        assert torch.equal(table[expected.indices], to_vectors(expected.z_q, vq.axis))


def test_weights_in_double_precision_train_too(vq: ChannelVQ) -> None:
    single = vq.eval()(feature_map()).indices
    vq.double().train()
    for seed in range(2):
        z = feature_map(seed).double().requires_grad_()
        out = vq(z)
        (out.loss + out.z_q.square().sum()).backward()
        assert z.grad is not None
    assert torch.equal(quantizer(vq.quantizer.config.kind, vq.axis).double().eval()(feature_map()).indices, single)


class Toy(nn.Module):
    """A linear autoencoder of maps around the quantizer."""

    def __init__(self, kind: str, axis: Axis) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder, self.decoder = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.vq = ChannelVQ(CODES, 16, axis=axis, kind=kind)

    def loss(self, x: Tensor) -> Tensor:
        z_q, _, loss = self.vq(self.encoder(x))
        return (self.decoder(z_q) - x).square().mean() + loss

    @torch.no_grad()
    def measure(self, x: Tensor) -> tuple[float, int]:
        z_q, indices, _ = self.eval().vq(self.encoder(x))
        self.train()
        return float((self.decoder(z_q) - x).square().mean()), len(indices.unique())


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_learn_and_use_the_codebook(kind: str, axis: Axis) -> None:
    toy, held_out = Toy(kind, axis), feature_map(999, batch=20)
    toy.vq.start_from(toy.encoder(feature_map(1, batch=20)).detach(), seeded(0))
    before, _ = toy.measure(held_out)
    optimizer = torch.optim.Adam(toy.parameters(), 1e-2)
    for step in range(20):
        optimizer.zero_grad()
        toy.loss(feature_map(step, batch=10)).backward()
        optimizer.step()
    after, used = toy.measure(held_out)
    assert after < 0.7 * before
    assert used > CODES / 3


def tokenizer(kind: str, axis: Axis) -> CVQTokenizer:
    network = ConvConfig(stem=2, base_channels=8, multipliers=(1, 2), num_blocks=1)
    settings = {"image_size": 16, "latent_channels": 12, "axis": axis, "quantizer": {"kind": kind, "codebook_size": 32}}
    torch.manual_seed(0)
    tok = CVQTokenizer(from_dict(CVQConfig, settings | {"network": network}))
    with torch.no_grad():
        images = torch.rand(48, 3, 16, 16, generator=seeded(1)) * 2 - 1
        tok.quantizer.start_from(tok.encoder(images), seeded(0))
    return tok.eval()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_through_files(kind: str, axis: Axis, tmp_path: Path) -> None:
    tok = tokenizer(kind, axis)
    tok.save_pretrained(tmp_path)
    again = CVQTokenizer.from_pretrained(tmp_path)
    assert again.config == tok.config
    assert again.config.quantizer.kind == kind
    images = torch.rand(3, 3, 16, 16, generator=seeded(2)) * 2 - 1
    ids = tok.tokenize(images)
    assert len(ids.unique()) > 4
    assert torch.equal(again.tokenize(images), ids)
    assert torch.equal(again.detokenize(ids[:, :7], "tensor"), tok.detokenize(ids[:, :7], "tensor"))
    assert torch.equal(again.train().quantizer.codes(), tok.quantizer.codes())
    with torch.no_grad():
        again(images)
    assert bool(again.quantizer.quantizer.started)


@pytest.fixture
def on_meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("kind", KINDS)
def test_can_be_planned_without_memory(kind: str) -> None:
    vq = ChannelVQ(4096, 64, kind=kind, **({"num_tokens": 32} if kind == WITHOUT_TABLE else {}))
    learned = {
        "simvq-tokenwise": 4096 * 24 + 32 * 64 * 24,
        "ema": 0,
        "simvq": 64 * 64,
        "lc": 64 * 64 + 64,
        "fsq": 2 * 4 * 64 + 4 + 64,
        "lfq": 2 * 12 * 64 + 12 + 64,
    }
    assert sum(p.numel() for p in vq.parameters()) == learned.get(kind, 4096 * 64)


def test_settings_choose_the_kind_and_mistakes_are_named() -> None:
    assert from_dict(CVQConfig, {"quantizer": {"codebook_size": 8}}).quantizer == PlainConfig(codebook_size=8)
    assert from_dict(CVQConfig, {"quantizer": {"kind": "simvq"}}).quantizer == SimVQConfig()
    with pytest.raises(InputError, match=r"beta: Input should be greater than or equal to 0.*"):
        ChannelVQ(8, 4, kind="simvq", beta=-1)
    with pytest.raises(InputError, match="decay: there is no such setting"):
        ChannelVQ(8, 4, kind="plain", decay=0.9)
    for kind in ("rvq", None, 3):
        with pytest.raises(InputError, match=r"kind is plain, ema, .*, simvq-residual, ibq, lc, fsq or lfq"):
            ChannelVQ(8, 4, kind=kind)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_are_not_finite_are_refused_alike_and_leave_no_trace(
    kind: str, training: bool, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    vq, clean = ChannelVQ(CODES, 16, kind=kind, num_tokens=16), feature_map()
    broken = clean.clone()
    broken[0, 0, 0, 0] = bad
    before = {name: tensor.clone() for name, tensor in vq.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(type(vq.quantizer), "_quantize", None)  # before any kind sees them
        with pytest.raises(NotFiniteError, match="quantizer: the tokens hold NaN"):
            vq.train(training)(broken)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vq.state_dict().items())
    assert vq.train()(clean).z_q.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_weights_that_are_not_finite_are_refused(vq: ChannelVQ, training: bool) -> None:
    for tensor in (*vq.parameters(), *(b for name, b in vq.named_buffers() if name.endswith("weight"))):
        tensor.data.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        vq.train(training)(feature_map())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.uint8, torch.complex64])
def test_maps_are_floats(vq: ChannelVQ, dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=r"expected a feature map of floats, got torch\."):
        vq(feature_map().to(dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8])
def test_ids_of_every_type_of_whole_numbers_mean_the_same(vq: ChannelVQ, dtype: torch.dtype) -> None:
    ids = vq.eval()(feature_map()).indices
    assert torch.equal(vq.indices_to_codes(ids.to(dtype)), vq.indices_to_codes(ids))
