"""What someone gets who chooses nothing: a kind that does not lose, and a first loss that means something."""

from pathlib import Path

import pytest
import torch
from tests.pages import blocks
from torch import nn

from channelvq import ChannelVQ, ResidualChannelVQ
from channelvq.quantize.ema import EMAConfig

ROOT = Path(__file__).parents[2]


def pictures() -> torch.Tensor:
    """(64, 3, 32, 32): soft waves of random directions and colours."""
    g = torch.Generator().manual_seed(0)
    at = torch.linspace(0, 6, 32)
    fx, fy, phase = torch.randn(3, 64, 3, 1, 1, generator=g)
    return torch.sin(fx * at + fy * at[:, None] + 3 * phase)


def error_after_training(vq: ChannelVQ) -> float:
    """Mean squared error of a small autoencoder around `vq` after 150 steps."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.SiLU(), nn.Conv2d(16, 32, 1))
    decoder = nn.Sequential(nn.Conv2d(32, 32, 1), nn.SiLU(), nn.ConvTranspose2d(32, 3, 4, 4))
    optimizer = torch.optim.AdamW(nn.ModuleList([encoder, vq, decoder]).parameters(), lr=2e-3)
    images, g, error = pictures(), torch.Generator().manual_seed(1), torch.zeros(())
    for _ in range(150):
        batch = images[torch.randint(len(images), (16,), generator=g)]
        z_q, _, loss = vq(encoder(batch))
        error = (decoder(z_q) - batch).square().mean()
        optimizer.zero_grad()
        (error + loss).backward()
        optimizer.step()
    return float(error.detach())


def test_the_default_beats_the_papers_kind_in_a_short_training() -> None:
    default = error_after_training(ChannelVQ(128, 64))
    plain = error_after_training(ChannelVQ(128, 64, kind="plain"))
    assert isinstance(ChannelVQ(128, 64).quantizer.config, EMAConfig)
    assert default < 0.8 * plain  # 1 dB


@pytest.mark.parametrize("page", ["README.md", "docs/guide/quantizer.md", "docs/guide/from-vector-quantize-pytorch.md"])
def test_the_first_loss_of_the_examples_is_not_that_of_tokens_that_are_codewords(page: str) -> None:
    shown = 0
    for block in blocks(ROOT / page, "python"):
        wanted = ("vq = ChannelVQ", "vq = ResidualChannelVQ", "z = ", "length", "keep", "z_q")
        lines = [line for line in block.splitlines() if line.startswith(wanted)]
        if not any(line.startswith("z_q, indices, loss = vq") for line in lines) or "nn.Conv2d" in block:
            continue
        scope: dict[str, object] = {"torch": torch, "ChannelVQ": ChannelVQ, "ResidualChannelVQ": ResidualChannelVQ}
        exec("\n".join(lines), scope)
        assert scope["loss"].detach() > 0.01, block  # type: ignore[arg-type]
        shown += 1
    assert shown
