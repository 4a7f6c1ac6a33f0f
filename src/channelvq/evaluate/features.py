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
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from channelvq.errors import InputError
from channelvq.evaluate.metrics import PairMetric, check_images
from channelvq.images import normalize
from channelvq.losses.perceptual import FeatureDistance, PerceptualLossConfig
from channelvq.nn.modes import CHUNK_ROWS, in_chunks
from channelvq.nn.perceptual import PerceptualNetwork
from channelvq.pretrained import weights_sha256

CPU = torch.device("cpu")
# The official networks take one image at a time: in larger chunks the place of an image changes its last bits.
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
LPIPS_FILES = {"lpips_alex": "alexnet-owt-7be5be79.pth", "lpips_vgg": "vgg16-397923af.pth"}


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Where sets of images are compared. kind: "perceptual" or "inception". name, sha256: of the network. width: E."""

    kind: str
    name: str
    sha256: str
    width: int
    features: Callable[[UInt8[Tensor, "n 3 h w"]], Float[Tensor, "n E"]]

    @property
    def network(self) -> dict[str, str]:
        """Which network it is, for the protocol."""
        return {"name": self.name, "sha256": self.sha256}


def perceptual_space(network: PerceptualNetwork, name: str = "bundled") -> FeatureSpace:
    """That of our network: its embeddings scaled to unit variance a number; on the CPU, wherever it computes."""
    return FeatureSpace(
        "perceptual", f"channelvq perceptual network, {name}", weights_sha256(network), network.config.embedding,
        lambda images: embeddings(network, images).cpu(),
    )  # fmt: skip


def inception_space(device: torch.device = CPU) -> FeatureSpace:
    """That of FID: the official Inception of torch-fidelity; InputError where it, or its weights file, is not here."""
    path = _weights(INCEPTION_FILE)
    if path is None:
        raise InputError(f"FID: its weights {INCEPTION_FILE} are not in {_checkpoints()}; put them there")
    try:
        package = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise InputError(f"FID: torch-fidelity (with torchvision) cannot be imported ({error}); install it") from None
    network = package.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return FeatureSpace(
        "inception", "Inception, torch-fidelity", digest, 2048,
        lambda images: in_chunks(lambda part: network(part)[0], images.to(device), rows=1).cpu(),
    )  # fmt: skip


@torch.no_grad()
def embeddings(network: PerceptualNetwork, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n E"]:
    """Embeddings of uint8 images, scaled to unit variance a number; raises InputError for others."""
    check_images(images)
    scale = network.config.embedding**0.5  # unit vectors of E numbers: a variance of 1/E
    return in_chunks(network, normalize(images.to(_place(network)))) * scale


@torch.no_grad()
def pair_distances(
    distance: nn.Module, x_hat: UInt8[Tensor, "n 3 h w"], x: UInt8[Tensor, "n 3 h w"]
) -> Float[Tensor, " n"]:
    """A distance of two batches in [-1, 1], of uint8 images; raises InputError for others."""
    check_images(x_hat)
    check_images(x)
    both = torch.cat([normalize(x_hat), normalize(x)], dim=1).to(_place(distance))
    rows = CHUNK_ROWS if isinstance(distance, FeatureDistance) else 1
    return in_chunks(lambda pairs: distance(pairs[:, :3], pairs[:, 3:]), both, rows=rows)


def _place(network: nn.Module) -> torch.device:
    return next((weights.device for weights in network.parameters()), CPU)


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _weights(name: str) -> Path | None:
    path = _checkpoints() / name
    return path if path.is_file() else None


def _perceptual(name: str) -> nn.Module:
    return FeatureDistance(PerceptualNetwork.load(name))


def _lpips(metric: str, _: str) -> nn.Module | None:
    """The official LPIPS, where the package and its weights are here."""
    if _weights(LPIPS_FILES[metric]) is None:
        return None
    # Where the package is not installed, or not importable beside this torch, there is no LPIPS.
    with suppress(InputError):
        return PerceptualLossConfig(network=metric.replace("_", "-")).build()
    return None


PERCEPTUAL = PairMetric(
    heading="perceptual", better="lower", network=_perceptual,
    definition="squared distance of unit feature vectors, mean over positions and stages; not LPIPS",
)  # fmt: skip
LPIPS_ALEX, LPIPS_VGG = (
    PairMetric(
        heading=f"LPIPS ({heading})", better="lower", network=partial(_lpips, metric), libraries=("lpips",),
        definition=f"lpips 0.1, {backbone}, pixels in [-1, 1] at their own size",
    )
    for metric, heading, backbone in (("lpips_alex", "AlexNet", "AlexNet"), ("lpips_vgg", "VGG", "VGG16"))
)  # fmt: skip
