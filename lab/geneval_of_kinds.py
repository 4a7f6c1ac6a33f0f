"""GenEval of the study of kinds of tokens: what each run draws for the test prompts, and which kind is better."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.data.drawn.captions import TASKS
from channelvq.evaluate.geneval.prompts import prompt_set
from channelvq.evaluate.geneval.report import judge, protocol
from channelvq.evaluate.geneval.run import drawn_geneval
from channelvq.evaluate.tables import TextTable
from channelvq.nn.detector import Detector

SAMPLES = 2
SAMPLING = SamplingSettings(guidance_scale=2.0, temperature=0.7)
RESAMPLES = 2000
# What the paper would have it: a generator on the first tokenizer beats one on the second.
PAIRS = (("nested", "not nested"), ("nested", "patch-wise"), ("not nested", "patch-wise"))
HEADINGS = ("tokens", "GenEval", "of each seed", *(task.replace("_", " ") for task in TASKS))
_OF_ONE_GENERATOR = ("generator_sha256", "tokenizer_sha256", "git")


def how_judged(car: CAR) -> dict[str, Any]:
    """The protocol, of all runs of the study."""
    how = protocol(car, Detector.load("bundled"), SAMPLING, SAMPLES)
    return {key: value for key, value in how.items() if key not in _OF_ONE_GENERATOR}


def measure(car: CAR, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """{"scores", "interval", "right"}; right: by task, of each prompt, [right images, images]."""
    prompts = prompt_set("test", car.tokenizer.image_size)
    images = drawn_geneval(car, prompts, SAMPLES, SAMPLING, None, progress)
    judged = judge(Detector.load("bundled"), prompts.prompts, images)
    right = {
        tag: [[sum(images), len(images)] for images in prompts.values()] for tag, prompts in judged.by_prompt().items()
    }
    return {"scores": judged.scores(), "interval": judged.intervals()["overall"], "right": right}


def of_tokenizer(result: Mapping[str, Any], tokenizer: str) -> list[dict[str, Any]]:
    """What was measured of the runs on a tokenizer, in the order of the seeds; raises KeyError where there is none."""
    runs = [row["metrics"]["geneval"] for row in result["records"] if row["name"].startswith(f"{tokenizer}, seed")]
    if not runs:
        raise KeyError(f"{tokenizer}, seed 0")
    return runs


def cells(measured: list[dict[str, Any]]) -> list[str]:
    """Cells of HEADINGS after the first: means over the seeds, and the overall score of each."""
    scores = [run["scores"] for run in measured]
    mean = {task: sum(score[task] for score in scores) / len(scores) for task in ("overall", *TASKS)}
    seeds = ", ".join(f"{score['overall']:.3f}" for score in scores)
    return [f"{mean['overall']:.3f}", seeds, *(f"{mean[task]:.3f}" for task in TASKS)]


def claims(result: Mapping[str, Any]) -> TextTable:
    """For each of PAIRS the difference of overall scores, its interval, and what it says of the claim."""
    rows = []
    for better, worse in PAIRS:
        mean, low, high = difference(of_tokenizer(result, better), of_tokenizer(result, worse))
        verdict = "holds" if low > 0 else "refuted" if high < 0 else "open"
        rows.append([f"{better} above {worse}", f"{mean:+.3f} ({low:+.3f} to {high:+.3f})", verdict])
    return TextTable(("claim", "difference (95 %)", "verdict"), rows)


def difference(first: list[dict[str, Any]], second: list[dict[str, Any]], seed: int = 0) -> tuple[float, float, float]:
    """First minus second in overall score: its value and the ends of its 95 % bootstrap interval.

    Prompts of a task are drawn anew, the same for both, and so are the seeds of each.
    """
    generator = torch.Generator().manual_seed(seed)
    seeds = [torch.randint(len(runs), (RESAMPLES, len(runs)), generator=generator) for runs in (first, second)]
    drawn, means = [], []
    for tag in first[0]["right"]:
        shares = [_shares(runs, tag) for runs in (first, second)]
        prompts = torch.randint(shares[0].shape[1], (RESAMPLES, shares[0].shape[1]), generator=generator)
        parts = [of[s[:, :, None], prompts[:, None]].mean((1, 2)) for of, s in zip(shares, seeds, strict=True)]
        drawn.append(parts[0] - parts[1])
        means.append(float(shares[0].mean() - shares[1].mean()))
    ends = torch.quantile(torch.stack(drawn).mean(0), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return sum(means) / len(means), ends[0], ends[1]


def _shares(measured: list[dict[str, Any]], tag: str) -> Float64[Tensor, "s p"]:
    right = torch.tensor([run["right"][tag] for run in measured], dtype=torch.float64)
    return right[..., 0] / right[..., 1]
