"""What a reconstruction is measured by: numbers of each image, and distances between the sets of images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor

from channelvq.errors import InputError
from channelvq.evaluate.features import (
    FeatureSpace,
    inception_space,
    lpips_at_hand,
    pair_distances,
    perceptual_space,
)
from channelvq.evaluate.metrics import MS_SSIM_SIDE, ms_ssim, psnr, ssim
from channelvq.evaluate.results import library_versions
from channelvq.losses.perceptual import FeatureDistance
from channelvq.nn.perceptual import PerceptualNetwork
from channelvq.pretrained import weights_sha256

PairMetric = Callable[[UInt8[Tensor, "n 3 h w"], UInt8[Tensor, "n 3 h w"]], Float[Tensor, " n"]]
DEFINITIONS = {
    "perceptual": "squared distance of unit feature vectors, mean over positions and stages; not LPIPS",
    "ms_ssim": "torchmetrics, five scales",
    "lpips_alex": "lpips 0.1, AlexNet, pixels in [-1, 1] at their own size",
    "lpips_vgg": "lpips 0.1, VGG16, pixels in [-1, 1] at their own size",
}


@dataclass(frozen=True, eq=False)
class Measures:
    """pairs: one number for each image and its original, PSNR and SSIM among them. space: for distances of sets.

    networks: SHA-256 of those that `pairs` use.
    """

    pairs: Mapping[str, PairMetric] = field(default_factory=lambda: {"psnr": psnr, "ssim": ssim})
    space: FeatureSpace | None = None
    networks: Mapping[str, str] = field(default_factory=dict)

    def protocol(self, num_images: int) -> dict[str, Any]:
        """What a result has to say of them beside `report.protocol`."""
        used = {"lpips": "lpips" in " ".join(self.pairs), "torch-fidelity": self.space and self.space.frechet == "fid"}
        return {
            "pair_metrics": {name: DEFINITIONS[name] for name in self.pairs if name in DEFINITIONS},
            "pair_networks": dict(self.networks),
            "other_libraries": library_versions(name for name, needed in used.items() if needed),
            **({"feature_network": None} if self.space is None else self.space.protocol(num_images)),
        }


def choose_measures(image_size: int, features: str = "auto") -> Measures:
    """All that can be measured on square images of a size.

    PSNR and SSIM always; MS-SSIM where its five scales fit; LPIPS where its weights are on this machine. features:
    "bundled" or the folder of a perceptual network (its distance of each pair, KID's kernel distance and a Frechet
    distance of the sets), "inception" (the pairs as with "bundled", the sets by the official Inception: FID), "auto"
    (that where it is on this machine, else "bundled") or "none". Raises InputError for what is not here.
    """
    pairs: dict[str, PairMetric] = {"psnr": psnr, "ssim": ssim}
    if image_size >= MS_SSIM_SIDE:
        pairs["ms_ssim"] = ms_ssim
    if features == "none":
        return Measures(pairs)
    name = "bundled" if features in ("auto", "inception") else features
    network = PerceptualNetwork.load(name)
    distances = {"perceptual": FeatureDistance(network), **lpips_at_hand()}
    pairs |= {metric: partial(pair_distances, distance) for metric, distance in distances.items()}
    hashes = {metric: weights_sha256(distance) for metric, distance in distances.items()}
    return Measures(pairs, _space(features, network, name), hashes)


def _space(features: str, network: PerceptualNetwork, name: str) -> FeatureSpace:
    try:
        return inception_space() if features in ("auto", "inception") else perceptual_space(network, name)
    except InputError:
        if features == "inception":
            raise
        return perceptual_space(network, name)
