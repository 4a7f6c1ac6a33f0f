"""GenEval in the closed world of our scenes: a generator, its tokenizer's ceiling, the detector's, and chance.

generator       images drawn for the prompts
reconstruction  real scenes of the prompts as the generator's tokenizer restores them: the most that it could reach
real            the scenes themselves: what the detector misses
shuffled        the generator's images, each judged by another prompt of its task: chance
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.evaluate.geneval.drawing import CHUNK
from channelvq.evaluate.geneval.prompts import PromptSet
from channelvq.evaluate.geneval.score import Prompt, faults, in_order, task_scores
from channelvq.evaluate.results import git_revision, library_versions
from channelvq.evaluate.tables import TextTable
from channelvq.images import resize_crop, to_pil, to_tensor
from channelvq.nn.detector import Detector
from channelvq.pictures import restored
from channelvq.pretrained import weights_sha256

RESAMPLES = 2000
KINDS = ("generator", "reconstruction", "real", "shuffled")


@dataclass(frozen=True)
class Judged:
    """Images of some prompts, judged. wrong: for each prompt and sample, what is wrong with it."""

    prompts: tuple[Prompt, ...]
    wrong: tuple[tuple[list[str], ...], ...]

    def scores(self) -> dict[str, float]:
        """Overall and by task."""
        flat = [(prompt.tag, not wrong) for prompt, row in zip(self.prompts, self.wrong, strict=True) for wrong in row]
        return task_scores(*zip(*flat, strict=True))

    def by_prompt(self) -> dict[str, dict[str, list[bool]]]:
        """By task and text, which images are right: a prompt that comes several times is one with more images."""
        right: dict[str, dict[str, list[bool]]] = {}
        for prompt, row in zip(self.prompts, self.wrong, strict=True):
            right.setdefault(prompt.tag, {}).setdefault(prompt.text, []).extend(not wrong for wrong in row)
        return right

    def intervals(self) -> dict[str, list[float]]:
        """Ends of the 95 % bootstrap interval of each score: prompts of a task are drawn anew, each with its images."""
        generator, means = torch.Generator().manual_seed(0), dict[str, Tensor]()
        for tag, right in self.by_prompt().items():
            sums, counts = (torch.tensor([float(f(each)) for each in right.values()]) for f in (sum, len))
            drawn = torch.randint(len(right), (RESAMPLES, len(right)), generator=generator)
            means[tag] = sums[drawn].sum(1) / counts[drawn].sum(1)
        means = {"overall": torch.stack(list(means.values())).mean(0)} | means
        return {tag: torch.quantile(values, torch.tensor([0.025, 0.975])).tolist() for tag, values in means.items()}

    def fault_shares(self) -> dict[str, dict[str, float]]:
        """Of each task, the share of images by the first thing that is wrong: missing, colour, position or count."""
        seen: dict[str, Counter[str]] = {}
        totals = Counter[str]()
        for prompt, row in zip(self.prompts, self.wrong, strict=True):
            totals[prompt.tag] += len(row)
            seen.setdefault(prompt.tag, Counter()).update(wrong[0].split(":")[0] for wrong in row if wrong)
        return {tag: {kind: n / totals[tag] for kind, n in sorted(kinds.items())} for tag, kinds in seen.items()}


def judge(detector: Detector, prompts: Sequence[Prompt], images: UInt8[Tensor, "n 3 h w"]) -> Judged:
    """Judge n / len(prompts) images of each prompt, all of a prompt together; of another size they are resized."""
    detections = detector.detect(_resized(images, detector.config.image_size))
    samples = len(images) // len(prompts)
    wrong = [
        tuple(faults(prompt, objects) for objects in detections[i * samples : (i + 1) * samples])
        for i, prompt in enumerate(prompts)
    ]
    return Judged(tuple(prompts), tuple(wrong))


def _resized(images: UInt8[Tensor, "n 3 h w"], size: int) -> UInt8[Tensor, "n 3 s s"]:
    if images.shape[-2:] == (size, size):
        return images
    return torch.stack([to_tensor(resize_crop(image, size)) for image in to_pil(images)])


def shuffled(prompts: Sequence[Prompt]) -> list[Prompt]:
    """For each prompt another one of its task: the next in a random circle of the task's distinct prompts."""
    following: dict[Prompt, Prompt] = {}
    generator = torch.Generator().manual_seed(0)
    for tag in dict.fromkeys(prompt.tag for prompt in prompts):
        distinct = list(dict.fromkeys(prompt for prompt in prompts if prompt.tag == tag))
        order = [distinct[i] for i in torch.randperm(len(distinct), generator=generator).tolist()]
        following |= dict(zip(order, order[1:] + order[:1], strict=True))
    return [following[prompt] for prompt in prompts]


def closed_world(
    car: CAR, detector: Detector, prompts: PromptSet, images: UInt8[Tensor, "n 3 h w"], sampling: SamplingSettings
) -> dict[str, Any]:
    """The result file of a generator whose images (the samples of a prompt together) are given."""
    samples = len(images) // len(prompts.plans)
    wanted = prompts.prompts
    real = prompts.scenes(samples)
    judged = {
        "generator": judge(detector, wanted, images),
        "reconstruction": judge(detector, wanted, restored(car.tokenizer, real, car.num_tokens, exact=False)),
        "real": judge(detector, wanted, real),
        "shuffled": judge(detector, shuffled(wanted), images),
    }
    how = protocol(car, detector, sampling, samples) | {
        "prompts": f"closed world, {prompts.source.split} split: {len(wanted)}, {len(set(wanted))} of them distinct",
        "prompts_sha256": prompts.sha256,
        "shuffled": "the generator's images, each judged by another prompt of the same task",
    }
    return {
        "protocol": how,
        **{kind: verdicts.scores() for kind, verdicts in judged.items()},
        "intervals": {kind: verdicts.intervals() for kind, verdicts in judged.items()},
        "faults": {kind: verdicts.fault_shares() for kind, verdicts in judged.items()},
    }


def scores(result: dict[str, Any]) -> TextTable:
    """A row for each kind of images that a result has, a column a task, "overall" with its interval."""
    rows = []
    for kind in (kind for kind in KINDS if kind in result):
        low, high = result["intervals"][kind]["overall"]
        cells = [f"{result[kind][name]:.3f}" for name in in_order(result[kind])]
        rows.append([kind, f"{cells[0]} ({low:.3f} to {high:.3f})", *cells[1:]])
    return TextTable(["", *(name.replace("_", " ") for name in in_order(result["generator"]))], rows)


def scores_by_task(result: dict[str, Any]) -> TextTable:
    """The same, a row a task, since there are more tasks than kinds of images: for a terminal."""
    wide = scores(result)
    headings, *rows = ([*column] for column in zip(wide.headings, *wide.rows, strict=True))
    return TextTable(headings, rows, "GenEval, judged by the detector of channelvq")


def protocol(car: CAR, detector: Detector, sampling: SamplingSettings, samples: int) -> dict[str, Any]:
    """How a generator is judged."""
    return {
        "samples_per_prompt": samples,
        "sampling": asdict(sampling) | {"exact": False, "chunk": CHUNK},
        "generator_sha256": weights_sha256(car),
        "tokenizer_sha256": weights_sha256(car.tokenizer),
        "detector_sha256": weights_sha256(detector),
        "detector_threshold": detector.config.threshold,
        "rules": "GenEval (arXiv 2310.11513): include, exclude, colour, position with a margin of 0.1",
        "score": "mean over tasks of the share of right images",
        "interval": f"95% percentile bootstrap over the prompts of each task, {RESAMPLES} resamples",
        "libraries": library_versions(("channelvq", "torch", "transformers", "pillow")),
        "git": git_revision(),
    }
