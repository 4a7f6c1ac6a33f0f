"""`cvq evaluate geneval`: draw what is asked for, in the folders that official scorers read, and score what we can."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.data.split import Split
from channelvq.evaluate.geneval.drawing import Picture, Progress, check_texts, draw, draw_files
from channelvq.evaluate.geneval.prompt_files import GenevalLine, PromptFile, geneval_pictures
from channelvq.evaluate.geneval.prompts import PromptSet, prompt_set
from channelvq.evaluate.geneval.report import closed_world, judge, protocol
from channelvq.evaluate.geneval.score import Prompt, prompt_of
from channelvq.evaluate.results import write_bytes
from channelvq.images import load_image, to_tensor
from channelvq.nn.detector import Detector


def run_closed_world(
    car: CAR,
    detector: Detector,
    split: Split,
    samples: int,
    sampling: SamplingSettings,
    folder: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """The result of `closed_world` on the prompts of a split; folder: keep the images there, and go on from them."""
    prompts = prompt_set(split, car.tokenizer.image_size)
    images = drawn_geneval(car, prompts, samples, sampling, folder, progress)
    return closed_world(car, detector, prompts, images, sampling)


def drawn_geneval(
    car: CAR, prompts: PromptSet, samples: int, sampling: SamplingSettings, folder: Path | None, progress: Progress
) -> UInt8[Tensor, "n 3 h w"]:
    """The images of a prompt set, the samples of a prompt together; folder: keep them there, and go on from them."""
    lines = _lines(prompts)
    pictures = geneval_pictures(lines, samples)
    check_texts(car, pictures[::samples])
    if folder is None:
        return draw(car, [picture.text for picture in pictures], sampling, progress)
    _draw_geneval(car, lines, pictures, sampling, folder, progress)
    return _read(folder, pictures)


def run_file(
    car: CAR,
    detector: Detector,
    file: PromptFile,
    samples: int,
    sampling: SamplingSettings,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Draw the images of an official prompt file.

    The result has a score of ours for "generator" only where the detector knows every class and colour of the file.
    """
    check_texts(car, file.pictures)
    if file.benchmark != "GenEval":
        draw_files(car, file.pictures, sampling, folder, progress)
        return _unscored(file, folder)
    _draw_geneval(car, file.lines, file.pictures, sampling, folder, progress)
    prompts = [line.prompt for line in file.lines]
    if outside := unknown(prompts, detector):
        return _unscored(file, folder) | {"unknown_to_detector": outside}
    judged = judge(detector, prompts, _read(folder, file.pictures))
    how = protocol(car, detector, sampling, samples) | {"prompts": f"{len(prompts)} given prompts"}
    return {
        "protocol": how, "generator": judged.scores(), "intervals": {"generator": judged.intervals()},
        "faults": {"generator": judged.fault_shares()},
    }  # fmt: skip


def unknown(prompts: Sequence[Prompt], detector: Detector) -> list[str]:
    """Classes and colours of the prompts that the detector does not know."""
    asked = [requirement for prompt in prompts for requirement in (*prompt.include, *prompt.exclude)]
    classes = {requirement.name for requirement in asked} - set(detector.config.classes)
    colours = {requirement.colour for requirement in asked if requirement.colour} - set(detector.config.colours)
    return sorted(classes | colours)


def _unscored(file: PromptFile, folder: Path) -> dict[str, Any]:
    return {"benchmark": file.benchmark, "images": len(file.pictures), "folder": folder.as_posix()}


def _lines(prompts: PromptSet) -> tuple[GenevalLine, ...]:
    records = (json.dumps(record) for record in prompts.records)
    return tuple(
        GenevalLine(prompt_of(json.loads(line)), line.encode(), f"closed-world prompt {i}")
        for i, line in enumerate(records)
    )


def _draw_geneval(
    car: CAR,
    lines: Sequence[GenevalLine],
    pictures: Sequence[Picture],
    sampling: SamplingSettings,
    folder: Path,
    progress: Progress,
) -> None:
    draw_files(car, pictures, sampling, folder, progress)
    for i, line in enumerate(lines):
        write_bytes(folder / f"{i:05d}/metadata.jsonl", line.content)


def _read(folder: Path, pictures: Sequence[Picture]) -> UInt8[Tensor, "n 3 h w"]:
    return torch.stack([to_tensor(load_image(folder / picture.path)) for picture in pictures])
