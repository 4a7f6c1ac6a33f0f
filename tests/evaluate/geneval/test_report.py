"""Scores, intervals and faults of judged images, by hand."""

import pytest
import torch

from channelvq.evaluate.geneval.report import Judged, judge, scores, shuffled
from channelvq.evaluate.geneval.score import Prompt, Requirement
from channelvq.nn.conv import ConvConfig
from channelvq.nn.detector import Detection, Detector, DetectorConfig
from channelvq.pictures import restored
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig, CVQTokenizer


def prompt(tag: str, name: str, count: int = 1) -> Prompt:
    return Prompt(tag, f"a photo of {count} {name}", (Requirement(name, count),))


DOG, CAT, CUPS = prompt("single_object", "dog"), prompt("single_object", "cat"), prompt("counting", "cup", 2)


def test_scores_are_shares_of_images_and_the_mean_of_tasks() -> None:
    judged = Judged((DOG, CAT, CUPS), (([], []), ([], ["missing: 0"]), (["count: 3"], ["missing: 1", "colour: red"])))
    assert judged.scores() == {"overall": 0.375, "single_object": 0.75, "counting": 0.0}
    assert judged.fault_shares() == {"single_object": {"missing": 0.25}, "counting": {"count": 0.5, "missing": 0.5}}


def test_intervals_are_over_prompts_not_images() -> None:
    # Two prompts, one all right and one all wrong: a resample is 0, 1/2 or 1, however many images each has.
    judged = Judged((DOG, CAT), (([],) * 50, (["missing: 0"],) * 50))
    assert judged.intervals()["single_object"] == [0.0, 1.0]
    # The same prompt twice is one prompt.
    judged = Judged((DOG, DOG), (([],) * 5, (["missing: 0"],) * 5))
    assert judged.intervals()["overall"] == [0.5, 0.5]
    many = [prompt("single_object", str(i)) for i in range(400)]
    low, high = Judged(tuple(many), tuple(([] if i % 2 else ["missing: 0"],) for i in range(400))).intervals()[
        "overall"
    ]
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.01)


def test_shuffled_prompts_are_others_of_the_same_task_each_as_often() -> None:
    prompts = [prompt("single_object", str(i % 5)) for i in range(15)] + [prompt("counting", str(i)) for i in range(4)]
    others = shuffled(prompts)
    assert all(a != b and a.tag == b.tag for a, b in zip(prompts, others, strict=True))
    assert sorted(map(repr, others)) == sorted(map(repr, prompts))


def test_a_row_has_the_interval_of_the_overall_score() -> None:
    result = {"generator": {"overall": 0.5, "colors": 0.5}, "intervals": {"generator": {"overall": [0.4, 0.6]}}}
    assert scores(result).rows == [["generator", "0.500 (0.400 to 0.600)", "0.500"]]


class Told(Detector):
    """Finds a dog where an image is bright."""

    def detect(self, images, threshold=None):  # type: ignore[no-untyped-def]
        assert images.shape[-2:] == (16, 16)
        return [[Detection("dog", (0, 0, 8, 8), "red", 0.9)] if image.float().mean() > 128 else [] for image in images]


@pytest.mark.parametrize("size", [16, 48])
def test_the_samples_of_a_prompt_stand_together_whatever_their_size(size: int) -> None:
    bright, dark = torch.full((3, size, size), 250, dtype=torch.uint8), torch.zeros((3, size, size), dtype=torch.uint8)
    detector = Told(DetectorConfig(("dog", "cat"), ("red",), image_size=16, widths=(8, 8, 8), num_blocks=1))
    judged = judge(detector, [DOG, CAT], torch.stack([bright, dark, bright, bright]))
    assert [[not each for each in row] for row in judged.wrong] == [[True, False], [False, False]]


def test_restored_images_are_those_of_the_whole_sequence() -> None:
    torch.manual_seed(0)
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    config = CVQConfig(image_size=16, latent_channels=8, network=network, quantizer=PlainConfig(codebook_size=32))
    tokenizer = CVQTokenizer(config).eval()
    images = torch.randint(0, 256, (70, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = restored(tokenizer, images, exact=False)
    again = tokenizer.detokenize(tokenizer.tokenize(images), output="tensor")
    assert made.shape == images.shape
    assert float((made.float() - ((again + 1) * 127.5)).abs().max()) < 1.0
