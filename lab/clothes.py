"""How pictures of clothes are judged: by a small classifier that was trained on the real ones.

accuracy     share of pictures that are taken for what they should be
Frechet      distance of its features from those of the real test pictures (of this classifier: not FID)
precision, recall   share of pictures within the manifold of the real ones, and the other way (Kynkaanniemi et al.
             2019, arXiv 1904.06991), by the 3rd nearest neighbour in its features
nearest      distance in pixels to the nearest training picture, beside that of the real test pictures
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.data.fetched.fashion import CLASSES, FashionSource
from channelvq.data.split import Split
from channelvq.evaluate.distances import frechet_distance
from channelvq.images import normalize
from channelvq.nn.modes import evaluating
from channelvq.pretrained import read_weights, write_weights

KEPT = Path(__file__).parent
WIDTH = 64  # of the features: the Frechet distance needs 20 pictures for each number
EPOCHS, BATCH, RATE = 6, 128, 3e-3
NEIGHBOURS = 3


class ClothesClassifier(nn.Module):
    """Gray pictures of 32 x 32 -> scores of the ten classes, over features of 64 numbers."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 24, 48, 96)
        stages = [
            layer
            for i in range(3)
            for layer in (
                nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False), nn.BatchNorm2d(widths[i + 1]), nn.ReLU(),
                nn.Conv2d(widths[i + 1], widths[i + 1], 3, padding=1, bias=False), nn.BatchNorm2d(widths[i + 1]),
                nn.ReLU(), nn.MaxPool2d(2),
            )
        ]  # fmt: skip
        self.features = nn.Sequential(*stages, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 16, WIDTH), nn.ReLU())
        self.head = nn.Linear(WIDTH, len(CLASSES))

    def forward(self, x: Float[Tensor, "B 1 32 32"]) -> Float[Tensor, "B 10"]:
        """Scores."""
        return self.head(self.features(x))


def pictures(split: Split, count: int | None = None) -> tuple[UInt8[Tensor, "n 3 32 32"], Int64[Tensor, " n"]]:
    """The first `count` pictures of a split (None: all) and their classes."""
    source, generator = FashionSource(split=split), torch.Generator()
    count = len(source) if count is None else count
    return torch.stack([source.sample(i, generator).image for i in range(count)]), source.labels[:count]


def classifier(store: Path, seed: int = 0) -> ClothesClassifier:
    """The classifier of a seed: that beside this file, whose training takes 15 minutes of a core, or the store's.

    Trained now where there is none.
    """
    name = f"clothes-classifier-{seed}.safetensors"
    path = KEPT / name if (KEPT / name).exists() else store / name
    if not path.exists():
        write_weights(path, dict(_trained(seed).state_dict()))
    network = ClothesClassifier()
    network.load_state_dict(read_weights(path))
    return network.eval()


def _trained(seed: int) -> ClothesClassifier:
    """Six epochs of the training pictures, half of them mirrored and all of them moved by up to two pixels."""
    images, labels = pictures("train")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():  # layers and dropout draw from the global generator
        torch.manual_seed(seed)
        network = ClothesClassifier().train()
        optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.05)
        batches = [
            batch for _ in range(EPOCHS) for batch in torch.randperm(len(images), generator=generator).split(BATCH)
        ]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=len(batches))
        for chosen in batches:
            x = gray(images[chosen])
            dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
            x = torch.roll(x, (dy, dx), (2, 3))  # the margin is two pixels of black
            x = x.flip(3) if float(torch.rand((), generator=generator)) < 0.5 else x
            loss = F.cross_entropy(network(x), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


def gray(images: UInt8[Tensor, "n 3 32 32"]) -> Float[Tensor, "n 1 32 32"]:
    """In [-1, 1], the mean of the colours."""
    return normalize(images).mean(1, keepdim=True)


@torch.no_grad()
def features(
    network: ClothesClassifier, images: UInt8[Tensor, "n 3 32 32"]
) -> tuple[Float[Tensor, "n 64"], Int64[Tensor, " n"]]:
    """Features and the class that a picture is taken for."""
    with evaluating(network):
        parts = [network.features(gray(part)) for part in images.split(500)]
        found = torch.cat(parts)
        return found, network.head(found).argmax(1)


class Judge:
    """Judges pictures against the real ones of a split."""

    def __init__(self, store: Path, split: Split = "test", seed: int = 0) -> None:
        self.network = classifier(store, seed)
        images, labels = pictures(split)
        self.real, taken = features(self.network, images)
        self.accuracy = float((taken == labels).float().mean())
        self._radius = _radii(self.real)

    def __call__(self, images: UInt8[Tensor, "n 3 32 32"], labels: Int64[Tensor, " n"]) -> dict[str, Any]:
        """{"accuracy", "accuracy_by_class", "frechet", "precision", "recall"} of pictures that should be of classes."""
        found, taken = features(self.network, images)
        right = taken == labels
        return {
            "accuracy": float(right.float().mean()),
            "accuracy_by_class": {
                name: float(right[labels == i].float().mean()) for i, name in enumerate(CLASSES) if (labels == i).any()
            },
            "frechet": frechet_distance(found, self.real),
            "precision": _covered(found, self.real, self._radius),
            "recall": _covered(self.real, found, _radii(found)),
        }


def _radii(vectors: Float[Tensor, "n E"]) -> Float[Tensor, " n"]:
    """The distance of each to its 3rd nearest neighbour."""
    tree = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(vectors.numpy())
    return torch.from_numpy(tree.kneighbors(vectors.numpy())[0][:, -1]).float()


def _covered(x: Float[Tensor, "n E"], y: Float[Tensor, "m E"], radii: Float[Tensor, " m"]) -> float:
    """Share of x that lies within the ball of any of y."""
    return float(torch.cat([(torch.cdist(part, y) <= radii).any(1) for part in x.split(1000)]).float().mean())


def nearest_training(images: UInt8[Tensor, "n 3 32 32"]) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"]]:
    """Root mean squared distance in levels of 255 to the nearest training picture, and which it is."""
    train = gray(pictures("train")[0]).flatten(1)
    best = [torch.cdist(part, train).min(1) for part in gray(images).flatten(1).split(500)]
    distance = torch.cat([part.values for part in best]) * 127.5 / train.shape[1] ** 0.5
    return distance, torch.cat([part.indices for part in best])
