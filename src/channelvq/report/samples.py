"""What a generator's samples show that its likelihood does not: copies of training images, and sameness over seeds.

Distances are 1 - cosine of the embeddings of a perceptual network: 0 for equal pictures, about 1 for unrelated ones.
p prompts, s seeds, n images, E numbers in an embedding.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from channelvq.errors import InputError
from channelvq.evaluate.metrics import mean_with_interval
from channelvq.lookup.nearest import nearest_codeword


def nearest(
    x: Float[Tensor, "n E"], references: Float[Tensor, "m E"]
) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"]]:
    """Distance of each embedding to the nearest reference, and which one that is."""
    x, references = F.normalize(x, dim=1), F.normalize(references, dim=1)
    place = nearest_codeword(x, references)  # of unit vectors the nearest is the one of the largest cosine
    return 1 - (x * references[place]).sum(1), place


def spread(embeddings: Float[Tensor, "p s E"]) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
    """For each prompt the mean distance between its seeds, and between its images and those of all other prompts.

    Raises InputError for fewer than two prompts or seeds.
    """
    prompts, seeds, _ = embeddings.shape
    if min(prompts, seeds) < 2:
        raise InputError(f"spread: expected at least 2 prompts and 2 seeds, got {prompts} and {seeds}")
    unit = F.normalize(embeddings, dim=2)
    within = 1 - unit @ unit.transpose(1, 2)
    inside = within.sum((1, 2)) / (seeds * (seeds - 1))  # the diagonal is zero
    means = unit.mean(1)
    other = (means.sum(0) - means) / (prompts - 1)
    return inside, 1 - (means * other).sum(1)


@dataclass(frozen=True, eq=False)
class SampleReport:
    """nearest_training, place: of each sample to the training images; nearest_held_out: of held-out images, restored by
    the tokenizer as the samples are. over_seeds, over_prompts: see `spread`.
    """

    nearest_training: Float[Tensor, " n"]
    place: Int64[Tensor, " n"]
    nearest_held_out: Float[Tensor, " m"]
    over_seeds: Float[Tensor, " p"]
    over_prompts: Float[Tensor, " p"]

    def to_dict(self) -> dict[str, Any]:
        """Means with bootstrap intervals, and how many samples are nearer to a training image than any held-out one."""
        values = {
            "nearest_training": self.nearest_training,
            "nearest_training_of_held_out": self.nearest_held_out,
            "over_seeds": self.over_seeds,
            "over_prompts": self.over_prompts,
        }
        figures: dict[str, Any] = {}
        for name, distances in values.items():
            interval = mean_with_interval(distances, seed=0)
            figures |= {name: interval.mean, f"{name}_interval": [interval.low, interval.high]}
        nearer = self.nearest_training < self.nearest_held_out.min()
        return figures | {"nearer_than_any_held_out": float(nearer.double().mean())}


def sample_report(
    samples: Float[Tensor, "p s E"], training: Float[Tensor, "m E"], held_out: Float[Tensor, "k E"]
) -> SampleReport:
    """From embeddings: of samples, of training images, and of held-out images restored by the tokenizer."""
    distance, place = nearest(samples.flatten(0, 1), training)
    return SampleReport(distance, place, nearest(held_out, training)[0], *spread(samples))
