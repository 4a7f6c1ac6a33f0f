"""What a quantizer takes beside feature maps: those of videos, and an example instead of numbers."""

import pytest
import torch

from channelvq import ChannelVQ, ResidualChannelVQ
from channelvq.errors import InputError
from channelvq.quantize.axis import Axis

pytestmark = pytest.mark.filterwarnings("ignore:kmeans.")


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("axis", ["channel", "patch"])
@pytest.mark.parametrize("kind", [ChannelVQ, ResidualChannelVQ])
def test_a_video_is_the_map_of_all_its_places(axis: Axis, kind: type) -> None:
    video = numbers(6, 4, 3, 2, 5)
    vq = kind(codebook_size=8, codebook_dim=30 if axis == "channel" else 4, axis=axis)
    vq(video)
    vq.eval()
    out, flat = vq(video), vq(video.flatten(3))
    assert out.z_q.shape == video.shape
    assert torch.equal(out.z_q, flat.z_q.view_as(video))
    assert torch.equal(out.indices, flat.indices)
    assert out.indices.shape[:2] == (6, 4 if axis == "channel" else 30)


@pytest.mark.parametrize(("shape", "axis", "dim", "tokens"), [
    ((2, 6, 3, 4), "channel", 12, 6), ((2, 6, 3, 4), "patch", 6, 12), ((2, 7, 5), "channel", 5, 7),
    ((2, 6, 2, 3, 4), "channel", 24, 6), ((2, 6, 2, 3, 4), "patch", 6, 24),
])  # fmt: skip
def test_an_example_says_what_size(shape: tuple[int, ...], axis: Axis, dim: int, tokens: int) -> None:
    vq = ChannelVQ.like(numbers(*shape), 16, axis=axis, kind="simvq-tokenwise")
    assert (vq.codebook_size, vq.codebook_dim, vq.axis) == (16, dim, axis)
    assert vq(numbers(*shape)).indices.shape == (2, tokens)
    assert len(vq.quantizer.weight) == tokens  # a map for each token


def test_no_example_is_refused_well() -> None:
    with pytest.raises(InputError, match=r"ChannelVQ: expected a feature map .* got \(2, 3\)"):
        ChannelVQ.like(numbers(2, 3), 16)
    with pytest.raises(InputError, match=r"ChannelVQ: expected a feature map .* got list"):
        ChannelVQ.like([1.0], 16)  # type: ignore[arg-type]
