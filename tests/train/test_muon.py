"""Muon's directions on a processor that is slow in bfloat16."""

import pytest
import torch
from torch import Tensor, nn

from channelvq.train import muon
from channelvq.train.muon import MuonWithAdamW

SHAPES = [(24, 40), (40, 24), (16, 16)]


def steps(monkeypatch: pytest.MonkeyPatch, tiles: bool) -> list[tuple[Tensor, Tensor]]:
    """(gradient, change) of each matrix after one step at the rate 1, without momentum of earlier ones."""
    monkeypatch.setattr(muon, "has_bfloat16_tiles", lambda: tiles)
    generator = torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    other = nn.Parameter(torch.zeros(3))
    for parameter in (*matrices, other):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    gradients = [matrix.grad.clone() for matrix in matrices if matrix.grad is not None]
    optimizer = MuonWithAdamW([{"params": [other]}], matrices, muon_lr=1.0, weight_decay=0.0, betas=(0.9, 0.95))
    optimizer.step()
    for matrix, gradient in zip(matrices, gradients, strict=True):
        assert matrix.grad is not None
        assert torch.equal(matrix.grad, gradient)
    return [(gradient, matrix.detach()) for matrix, gradient in zip(matrices, gradients, strict=True)]


def direction(gradient: Tensor) -> Tensor:
    """Five steps of the quintic iteration of Jordan (2024), in float64."""
    x = gradient.double()
    x = x / x.norm()
    for _ in range(5):
        a = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
        b = -4.7750 * a + 2.0315 * a @ a
        x = 3.4445 * x + (b @ x if x.shape[0] <= x.shape[1] else x @ b)
    return x


def errors(pairs: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Of the direction of each change, relative to the length of the true one."""
    found = []
    for gradient, change in pairs:
        true, seen = (m / m.norm() for m in (-direction(gradient), change.double()))
        found.append(float((true - seen).norm()))
    return found


def test_without_tiles_it_is_the_iteration_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(errors(steps(monkeypatch, tiles=False))) < 1e-4
    assert min(errors(steps(monkeypatch, tiles=True))) > 1e-3  # torch's own, in bfloat16
