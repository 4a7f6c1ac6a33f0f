"""Codewords by direction: tokens and codewords at length 1."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from channelvq import ChannelVQ, CVQTokenizer, ResidualChannelVQ
from channelvq.config import from_dict
from channelvq.errors import InputError
from channelvq.tokenizer import CVQConfig

KINDS = ("plain", "ema")
CODES, DIM = 24, 16


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(seed: int = 0, batch: int = 4) -> Tensor:
    """(batch, 8, 16) of lengths that differ a lot."""
    lengths = torch.rand(batch, 8, 1, generator=seeded(seed + 100)) * 20 + 0.1
    return torch.randn(batch, 8, DIM, generator=seeded(seed)) * lengths


@pytest.fixture(params=KINDS)
def vq(request: pytest.FixtureRequest) -> ChannelVQ:
    torch.manual_seed(0)
    vq = ChannelVQ(CODES, DIM, kind=request.param, distance="cosine")
    vq.start_from(tokens(1, batch=24), seeded(0))
    return vq


def test_the_code_is_that_of_the_largest_cosine_and_has_length_1(vq: ChannelVQ) -> None:
    z = tokens()
    for training in (True, False):
        table = vq.codes().detach().clone()
        z_q, indices, _ = vq.train(training)(z)
        cosines = torch.nn.functional.cosine_similarity(z[:, :, None].double(), table.double(), dim=3)
        assert torch.equal(cosines.argmax(2), indices)
        assert torch.equal(vq.indices_to_codes(indices), z_q)
        assert torch.equal(vq.indices_to_codes(indices[1:, :3]), z_q[1:, :3])
        torch.testing.assert_close(vq.codes().norm(dim=1), torch.ones(CODES))


def test_lengths_say_nothing(vq: ChannelVQ) -> None:
    z, scale = tokens(), 2.0 ** torch.randint(-8, 9, (4, 8, 1), generator=seeded(3))
    ours, scaled = vq.eval()(z), vq(z * scale)
    assert torch.equal(ours.indices, scaled.indices)
    assert torch.equal(ours.loss, scaled.loss)


def test_it_is_vector_quantize_pytorchs(vq: ChannelVQ) -> None:
    library = pytest.importorskip("vector_quantize_pytorch")
    theirs = library.VectorQuantize(
        dim=DIM, codebook_size=CODES, use_cosine_sim=True, commitment_weight=0.25, rotation_trick=False
    )
    theirs._codebook.embed.data.copy_(vq.codes().detach()[None])
    results = []
    for call in (vq.eval(), lambda x: theirs.train()(x, freeze_codebook=True)):
        z = tokens().requires_grad_()
        z_q, indices, loss = call(z)
        loss = vq(z).losses["commitment"] if call is vq else loss.sum()
        ((z_q * tokens(5)).sum() + loss).backward()
        results.append((z_q, indices, loss, z.grad))
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(ours, other)


def test_an_update_of_the_averages_turns_codewords_on_the_sphere() -> None:
    vq = ChannelVQ(2, 2, kind="ema", distance="cosine", decay=0.5, start="uniform", revive_after=0)
    vq.quantizer._set(slice(None), torch.eye(2))  # type: ignore[operator]
    vq(torch.tensor([[[0.6, 0.8], [3.0, 0.0]]]))
    # m = e / 2 + z / 2 for both, of z at length 1; then e is m at length 1.
    expected = torch.nn.functional.normalize(torch.tensor([[2.0, 0.0], [0.6, 1.8]]), dim=1)
    torch.testing.assert_close(vq.codes(), expected)


def test_codes_that_come_back_are_of_length_1() -> None:
    vq = ChannelVQ(CODES, DIM, kind="ema", distance="cosine", start="uniform", revive_after=1)
    torch.testing.assert_close(vq.codes().norm(dim=1), torch.ones(CODES))
    for step in range(8):
        vq(tokens(step) + 30)
    torch.testing.assert_close(vq.codes().norm(dim=1), torch.ones(CODES))
    assert len(vq.eval()(tokens(20, batch=24) + 30).indices.unique()) > CODES / 2


def test_residual_quantizers_see_directions_of_what_is_left() -> None:
    vq = ResidualChannelVQ(CODES, DIM, num_quantizers=2, distance="cosine")
    z = tokens(0, batch=24)
    z_q, indices, _ = vq(z)
    assert torch.equal(vq.indices_to_codes(indices), z_q)
    torch.testing.assert_close(vq.codes().norm(dim=2), torch.ones(2, CODES))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_through_files_and_onnx(kind: str, tmp_path: Path) -> None:
    from channelvq.onnx_export import _NearestLookup

    network = {"kind": "conv", "stem": 2, "base_channels": 8, "multipliers": (1, 2), "num_blocks": 1}
    quantizer = {"kind": kind, "codebook_size": CODES, "distance": "cosine"}
    settings = {"image_size": 16, "latent_channels": 12, "network": network, "quantizer": quantizer}
    torch.manual_seed(0)
    tok = CVQTokenizer(from_dict(CVQConfig, settings)).eval()
    images = torch.rand(32, 3, 16, 16, generator=seeded(1)) * 2 - 1
    with torch.no_grad():
        tok.quantizer.start_from(tok.encoder(images), seeded(0))
        maps = tok.encoder(images).flatten(2)
        assert torch.equal(_NearestLookup(tok.quantizer.quantizer)(maps), tok.quantizer(maps).indices)
    tok.save_pretrained(tmp_path)
    again, ids = CVQTokenizer.from_pretrained(tmp_path), tok.tokenize(images)
    assert len(ids.unique()) > 4
    assert torch.equal(again.tokenize(images), ids)
    assert torch.equal(again.detokenize(ids, "tensor"), tok.detokenize(ids, "tensor"))


def test_there_is_no_other_distance() -> None:
    with pytest.raises(InputError, match=r"distance: Input should be 'cosine' \(given 'dot'\)"):
        ChannelVQ(8, 4, distance="dot")
