"""Figures of the reference tools on inputs of closed form, for tests/evaluate/test_peers.py to compare ours with.

Run by `make peers` in an environment of its own (scripts/peers.txt). The inputs and the stand-in backbone are defined
here for both sides: the tests load this file, so it imports nothing but torch at its top.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS, DIM = 600, 24


def numbers(shape: tuple[int, ...], salt: int) -> Tensor:
    """Numbers in [0, 1), float64, by integer arithmetic alone: the same on every machine and in every version."""
    state = torch.arange(torch.Size(shape).numel()) + 1 + 1_000_003 * salt
    for _ in range(3):
        state = (state * 1_103_515_245 + 12_345) % 2**31
        state = state ^ (state >> 13)
    return (state.double() / 2**31).reshape(shape)


def feature_sets() -> tuple[Tensor, Tensor]:
    """Two sets of correlated features (600, 24) of unlike means and spreads."""
    mix = numbers((DIM, DIM), 1) - 0.5
    x = (numbers((ROWS, DIM), 2) - 0.5) @ mix
    y = 1.3 * (numbers((ROWS, DIM), 3) - 0.4) @ mix.roll(1, 0)
    return x, y


def images(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Three uint8 pictures, smooth to rough, and copies with growing noise: (3, 3, height, width)."""
    smooth = F.interpolate(numbers((3, 3, 12, 12), 4), (height, width), mode="bilinear", align_corners=True)
    share = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)[:, None, None, None]
    x = (1 - share) * smooth + share * numbers((3, 3, height, width), 5)
    y = (1 - share) * x + share * numbers((3, 3, height, width), 6)
    return (x * 255).round().byte(), (y * 255).round().byte()


class StandIn(nn.Module):
    """A backbone of two convolutions with weights of closed form, in the place of one that has to be downloaded."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 20, 3, stride=2, padding=1)
        for salt, parameter in enumerate(self.parameters(), start=7):
            parameter.data = (numbers(tuple(parameter.shape), salt) - 0.5).float()

    def features(self, x: Tensor) -> list[Tensor]:
        first = F.relu(self.first(x))
        return [first, F.relu(self.second(first))]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.features(x)


def frechet_and_kid() -> dict[str, float]:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    x, y = feature_sets()
    frechet = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), verbose=False)
    kid = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=ROWS, verbose=False)
    return {"frechet": frechet[KEY_METRIC_FID], "kid": kid[KEY_METRIC_KID_MEAN]}


@torch.no_grad()
def lpips_baseline() -> list[float]:
    """The package's own distance without linear heads, summed over the two layers, on the stand-in backbone."""
    from lpips import LPIPS

    # version 0.0: pictures are not rescaled before the backbone.
    model = LPIPS(net="alex", version="0.0", lpips=False, pretrained=False, pnet_rand=True, verbose=False)
    model.net, model.L = StandIn(), 2
    x, y = (picture.float() / 127.5 - 1 for picture in images(32, 48))
    return model(x, y).flatten().tolist()


def ms_ssim() -> list[float]:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    x, y = (picture.float() for picture in images(176, 180))
    return multiscale_structural_similarity_index_measure(x, y, data_range=255.0, reduction="none").tolist()


def main(path: Path) -> None:
    packages = ("torch", "torchvision", "torch-fidelity", "lpips", "torchmetrics", "numpy")
    result = {
        "protocol": {"libraries": {name: version(name) for name in packages}, "inputs": "scripts/peers.py"},
        **frechet_and_kid(),
        "lpips_baseline": lpips_baseline(),
        "ms_ssim": ms_ssim(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
