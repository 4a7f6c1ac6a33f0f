"""Networks that pictures are compared with: ours, and the official ones of LPIPS and FID where their weights lie ready.

Distances by our network are not LPIPS, FID or KID over Inception, and are not comparable with published figures of
them; so they go by the network's name. Nothing here downloads anything. Everything is computed in chunks of a fixed
number of images, so no bit depends on the batch.
"""

import hashlib
import importlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from channelvq.errors import InputError
from channelvq.evaluate import distances
from channelvq.evaluate.metrics import check_images
from channelvq.images import normalize
from channelvq.losses.perceptual import FeatureDistance, PerceptualLossConfig
from channelvq.nn.modes import CHUNK_ROWS, in_chunks
from channelvq.nn.perceptual import PerceptualNetwork
from channelvq.pretrained import weights_sha256

# The official networks take one image at a time: in larger chunks the place of an image changes its last bits.
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
LPIPS_FILES = {"lpips_alex": "alexnet-owt-7be5be79.pth", "lpips_vgg": "vgg16-397923af.pth"}


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Where sets of images are compared. name, sha256: of the network. width: E. frechet: what that distance is called.

    projects: to as few dimensions as the number of images allows; a published figure such as FID is never projected.
    """

    name: str
    sha256: str
    width: int
    frechet: str
    projects: bool
    features: Callable[[UInt8[Tensor, "n 3 h w"]], Float[Tensor, "n E"]]

    def dimensions(self, num_images: int) -> int | None:
        """Those of the Frechet distance of so many images; None where it is refused."""
        if self.projects:
            return distances.frechet_dimensions(num_images, self.width)
        return self.width if num_images >= distances.IMAGES_PER_DIMENSION * self.width else None

    def protocol(self, num_images: int) -> dict[str, object]:
        """What a result has to say of its distances between sets."""
        dimensions = self.dimensions(num_images)
        refused = f"refused: fewer than {distances.IMAGES_PER_DIMENSION} images a dimension"
        drawn = f"{dimensions} of {self.width} dimensions, a subspace drawn with seed 0"
        return {
            "feature_network": {"name": self.name, "sha256": self.sha256},
            "kid": "unbiased MMD^2, kernel (x.y / E + 1)^3, all images at once (blocks of 4096)",
            self.frechet: refused if dimensions is None else drawn if self.projects else f"{self.width} dimensions",
        }

    def distances(self, x: Float[Tensor, "n E"], y: Float[Tensor, "n E"]) -> dict[str, float]:
        """The kernel distance ("kid") of two sets of features and, where there are enough of them, the Frechet one."""
        if len(x) < 2:
            return {}
        found = {"kid": distances.kernel_distance(x, y)}
        if (dimensions := self.dimensions(len(x))) is not None:
            pair = [distances.projected(z, dimensions) if self.projects else z for z in (x, y)]
            found[self.frechet] = distances.frechet_distance(*pair)
        return found


def perceptual_space(network: PerceptualNetwork, name: str = "bundled") -> FeatureSpace:
    """That of our network: its embeddings scaled to unit variance a number."""
    return FeatureSpace(
        f"channelvq perceptual network, {name}", weights_sha256(network), network.config.embedding, "frechet", True,
        lambda images: embeddings(network, images),
    )  # fmt: skip


def inception_space() -> FeatureSpace:
    """That of FID: the official Inception of torch-fidelity; InputError where it, or its weights file, is not here."""
    path = _weights(INCEPTION_FILE)
    if path is None:
        raise InputError(f"FID: its weights {INCEPTION_FILE} are not in {_checkpoints()}; put them there")
    try:
        package = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise InputError(f"FID: torch-fidelity (with torchvision) cannot be imported ({error}); install it") from None
    network = package.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return FeatureSpace(
        "Inception, torch-fidelity", digest, 2048, "fid", False,
        lambda images: in_chunks(lambda part: network(part)[0], images, rows=1),
    )  # fmt: skip


@torch.no_grad()
def embeddings(network: PerceptualNetwork, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n E"]:
    """Embeddings of uint8 images, scaled to unit variance a number; raises InputError for others."""
    check_images(images)
    scale = network.config.embedding**0.5  # unit vectors of E numbers: a variance of 1/E
    return in_chunks(network, normalize(images)) * scale


def lpips_at_hand() -> dict[str, nn.Module]:
    """By metric ("lpips_alex", "lpips_vgg") the official LPIPS, where the package and its weights are here."""
    found = {}
    for metric, file in LPIPS_FILES.items():
        if _weights(file) is not None:
            # Where the package is not installed, or not importable beside this torch, there is no LPIPS.
            with suppress(InputError):
                found[metric] = PerceptualLossConfig(network=metric.replace("_", "-")).build()
    return found


@torch.no_grad()
def pair_distances(
    distance: nn.Module, x_hat: UInt8[Tensor, "n 3 h w"], x: UInt8[Tensor, "n 3 h w"]
) -> Float[Tensor, " n"]:
    """A distance of two batches in [-1, 1], of uint8 images; raises InputError for others."""
    check_images(x_hat)
    check_images(x)
    both = torch.cat([normalize(x_hat), normalize(x)], dim=1)
    rows = CHUNK_ROWS if isinstance(distance, FeatureDistance) else 1
    return in_chunks(lambda pairs: distance(pairs[:, :3], pairs[:, 3:]), both, rows=rows)


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _weights(name: str) -> Path | None:
    path = _checkpoints() / name
    return path if path.is_file() else None
