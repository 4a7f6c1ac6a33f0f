"""What a reconstruction is measured by here and now: those of the METRICS for which this machine has all it takes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from channelvq.errors import InputError
from channelvq.evaluate.features import CPU, FeatureSpace, inception_space, pair_distances, perceptual_space
from channelvq.evaluate.metrics import BASIC, METRICS, PairFunction, PairMetric, SetMetric, psnr, ssim
from channelvq.evaluate.results import library_versions
from channelvq.nn.perceptual import PerceptualNetwork
from channelvq.pretrained import weights_sha256


@dataclass(frozen=True, eq=False)
class Measures:
    """pairs: one number for each image and its original, PSNR and SSIM among them. space: for distances of sets.

    networks: SHA-256 of those that `pairs` use.
    """

    pairs: Mapping[str, PairFunction] = field(default_factory=lambda: {"psnr": psnr, "ssim": ssim})
    space: FeatureSpace | None = None
    networks: Mapping[str, str] = field(default_factory=dict)

    def protocol(self, num_images: int) -> dict[str, Any]:
        """What a result has to say of them beside `results.protocol`, which defines the basic ones."""
        pairs = {name: metric for name in self.pairs if isinstance(metric := METRICS[name], PairMetric)}
        sets = dict(self._set_metrics())
        libraries = [library for metric in (*pairs.values(), *sets.values()) for library in metric.libraries]
        space = self.space
        return {
            "pair_metrics": {name: metric.definition for name, metric in pairs.items() if name not in BASIC},
            "pair_networks": dict(self.networks),
            "other_libraries": library_versions(dict.fromkeys(libraries)),
            "feature_network": space and space.network,
            **{name: metric.definition(num_images, space.width) for name, metric in sets.items() if space},
        }

    def distances(self, x: Float[Tensor, "n E"], y: Float[Tensor, "n E"]) -> dict[str, float]:
        """By metric the distance of two sets of features, where there are enough of them; InputError for no number."""
        if len(x) < 2:
            return {}
        measured = {name: metric.measure(x, y) for name, metric in self._set_metrics()}
        for name, distance in measured.items():
            if not isinstance(distance, float | int | None):
                raise InputError(f"metric {name!r}: expected a number or None, got {type(distance).__name__}")
        return {name: distance for name, distance in measured.items() if distance is not None}

    def _set_metrics(self) -> Iterator[tuple[str, SetMetric]]:
        if self.space is None:
            return
        for name in METRICS.names():
            metric = METRICS[name]
            if isinstance(metric, SetMetric) and (metric.spaces is None or self.space.kind in metric.spaces):
                yield name, metric


def choose_measures(image_size: int, features: str = "auto", device: torch.device = CPU) -> Measures:
    """All that can be measured on square images of a size.

    PSNR and SSIM always; MS-SSIM where its five scales fit; LPIPS where its weights are on this machine. features:
    "bundled" or the folder of a perceptual network (its distance of each pair, KID's kernel distance and a Frechet
    distance of the sets), "inception" (the pairs as with "bundled", the sets by the official Inception: FID), "auto"
    (that where it is on this machine, else "bundled") or "none". device: where their networks compute. Raises
    InputError for what is not here.
    """
    perceptual = "bundled" if features in ("auto", "inception", "none") else features
    pairs: dict[str, PairFunction] = {}
    networks: dict[str, str] = {}
    for name in METRICS.names():
        metric = METRICS[name]
        if not isinstance(metric, PairMetric) or image_size < metric.least_side:
            continue
        if metric.measure is not None:
            pairs[name] = metric.measure
        elif features != "none" and metric.network and (network := metric.network(perceptual)) is not None:
            pairs[name] = partial(pair_distances, network.to(device))
            networks[name] = weights_sha256(network)
    return Measures(pairs, None if features == "none" else _space(features, perceptual, device), networks)


def _space(features: str, perceptual: str, device: torch.device) -> FeatureSpace:
    if features in ("auto", "inception"):
        try:
            return inception_space(device)
        except InputError:
            if features == "inception":
                raise
    return perceptual_space(PerceptualNetwork.load(perceptual).to(device), perceptual)
