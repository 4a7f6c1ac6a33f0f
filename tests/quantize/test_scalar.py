"""FSQ and LFQ around the library's rounding."""

import sys

import pytest
import torch
from vector_quantize_pytorch import FSQ, LFQ

from channelvq import ChannelVQ
from channelvq.errors import InputError
from channelvq.quantize.fsq import FSQConfig


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        (4, (4,)), (8, (8,)), (16, (16,)), (32, (8, 4)), (64, (8, 8)), (256, (16, 16)), (1024, (16, 8, 8)),
        (4096, (8,) * 4), (16384, (16, 16, 8, 8)), (65536, (16, 8, 8, 8, 8)),
    ],
)  # fmt: skip
def test_levels_of_a_codebook_size(size: int, levels: tuple[int, ...]) -> None:
    assert FSQConfig(codebook_size=size).chosen_levels == levels
    assert ChannelVQ(size, 16, kind="fsq").codes().shape == (size, 16)


def test_wrong_sizes_say_what_was_needed() -> None:
    with pytest.raises(InputError, match=r"power of two of at least 4, got 1000.*levels=\[8,5,5,5\]"):
        ChannelVQ(1000, 16, kind="fsq")
    assert ChannelVQ(1000, 16, kind="fsq", levels=(8, 5, 5, 5)).codebook_size == 1000
    with pytest.raises(InputError, match=r"product of the levels \[8, 5\], 40, got 64"):
        ChannelVQ(64, 16, kind="fsq", levels=(8, 5))
    with pytest.raises(InputError, match="power of two of at least 2, got 100"):
        ChannelVQ(100, 16, kind="lfq")
    with pytest.raises(InputError, match="4,096 codes take 12 rounded numbers, a token has only 9"):
        ChannelVQ(4096, 9, kind="lfq")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    for kind in ("fsq", "lfq"):
        with pytest.raises(InputError, match=r"pip install 'channelvq\[peers\]'"):
            ChannelVQ(64, 16, kind=kind)
    ChannelVQ(64, 16, kind="simvq")


def test_import_does_not_need_the_library() -> None:
    import subprocess

    code = "import sys, channelvq.tokenizer; sys.exit('vector_quantize_pytorch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["fsq", "lfq"])
def test_indices_and_codes_are_the_librarys(kind: str) -> None:
    theirs = FSQ([8, 8]) if kind == "fsq" else LFQ(codebook_size=64, dim=6).eval()
    vq = ChannelVQ(64, 6, axis="patch", kind=kind).eval()
    digits = 2 if kind == "fsq" else 6
    with torch.no_grad():  # projections that do nothing
        vq.quantizer.in_weight.copy_(torch.eye(6)[:digits])  # type: ignore[operator, union-attr]
        vq.quantizer.out_weight.copy_(torch.eye(6)[:, :digits])  # type: ignore[operator, union-attr]
    z = torch.randn(3, 6, 5, 5, generator=seeded(0))
    vectors = z.flatten(2).transpose(1, 2)[..., :digits]
    out = vq(z)
    assert torch.equal(out.indices, theirs(vectors)[1].long())
    assert torch.equal(out.z_q.flatten(2).transpose(1, 2)[..., :digits], theirs(vectors)[0])
    assert torch.equal(vq.codes()[:, :digits], theirs.indices_to_codes(torch.arange(64)))


@pytest.mark.parametrize("kind", ["fsq", "lfq"])
def test_start_from_data_is_the_best_linear_way_back(kind: str) -> None:
    basis = torch.randn(8, 16, generator=seeded(1)) * torch.tensor([4.0, 3, 2, 1, 0.5, 0.2, 0.1, 0.1])[:, None]
    z = 7 + torch.randn(500, 8, generator=seeded(2)) @ basis
    vq = ChannelVQ(64, 16, kind=kind)
    vq.quantizer.start_from(z, seeded(0))
    out = vq.eval()(z.view(1, 500, 4, 4))
    assert len(out.indices.unique()) >= 60
    error = (z - out.z_q.view(500, 16)).double().detach()
    # Least squares: what is left is uncorrelated with the digits and has mean zero.
    points = vq.quantizer.grid[out.indices[0]].double()  # type: ignore[index, union-attr]
    assert error.mean(0).abs().max() < 1e-4
    assert (points.T @ error / 500).abs().max() < 1e-3
    assert error.square().mean() < 0.5 * z.var(0).mean()
