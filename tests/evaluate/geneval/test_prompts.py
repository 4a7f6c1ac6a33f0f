"""The closed world's prompts: always the same, as many as the official file has, of combinations no training has."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from channelvq.data.drawn.captions import ALL_TASKS
from channelvq.data.drawn.scene_plan import combinations
from channelvq.data.drawn.scenes import SceneSource
from channelvq.data.fetched.packages import find_package
from channelvq.evaluate.geneval.prompts import COUNTS, prompt_set
from channelvq.evaluate.geneval.report import judge, shuffled
from channelvq.evaluate.geneval.score import faults
from channelvq.nn.detector import Detection, Detector

HAS_FLUENT = all(find_package(name) for name in ("fluent-emoji", "emojibase-data"))
FLUENT = pytest.mark.skipif(not HAS_FLUENT, reason="fluent-emoji not in the cache")
SETS = ["shapes", pytest.param("fluent", marks=FLUENT)]
BUNDLED = Path(__file__).parents[3] / "src/channelvq/bundled/detector"


@pytest.mark.parametrize("sprites", SETS)
def test_as_many_of_each_task_as_the_official_file(sprites: str) -> None:
    for split in ("validation", "test"):
        prompts = prompt_set(split, 64, sprites)  # type: ignore[arg-type]
        assert Counter(prompt.tag for prompt in prompts.prompts) == COUNTS
    assert sum(COUNTS.values()) == 553


def test_the_same_in_another_process_and_another_one_for_another_split() -> None:
    code = "from channelvq.evaluate.geneval.prompts import prompt_set; print(prompt_set('test', 64, 'shapes').sha256)"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert prompt_set("test", 64, "shapes").sha256 == there
    assert prompt_set("test", 32, "shapes").sha256 == there
    assert prompt_set("validation", 64, "shapes").sha256 != there


@pytest.mark.parametrize("sprites", SETS)
def test_no_training_scene_combines_what_a_prompt_does(sprites: str) -> None:
    source = SceneSource(32, "train", sprites, tasks=ALL_TASKS)  # type: ignore[arg-type]
    train = {key for i in range(1000) for keys in combinations(source.scene(i).plan) for key in keys}
    about = {
        s: {k for p in prompt_set(s, 32, sprites).plans for k in combinations(p)[0]} for s in ("validation", "test")
    }  # type: ignore[arg-type]
    assert len(about["test"]) > 100
    assert not about["test"] & (train | about["validation"])
    assert not about["validation"] & train


def test_scenes_show_what_their_prompts_ask_for() -> None:
    """The truth of a scene, given as detections, passes; the truth of another prompt's scene fails."""
    prompts = prompt_set("test", 64, "shapes")
    right = chance = 0
    for plan, prompt, other in zip(prompts.plans, prompts.prompts, shuffled(prompts.prompts), strict=True):
        objects = prompts.source.scene_of(plan, 1).objects
        truth = [Detection(o.name, tuple(map(float, o.box)), o.colour or "red", 0.9) for o in objects]  # type: ignore[arg-type]
        right += not faults(prompt, truth)
        chance += not faults(other, truth)
        assert other != prompt
        assert other.tag == prompt.tag
    assert right == 553
    assert chance < 0.1 * 553


def test_scenes_of_a_prompt_differ_and_come_in_order() -> None:
    prompts = prompt_set("test", 32, "shapes")
    images = prompts.scenes(2)
    assert images.shape == (2 * 553, 3, 32, 32)
    assert torch.equal(images[6], prompts.source.scene_of(prompts.plans[3], 0).image)
    assert torch.equal(images[7], prompts.source.scene_of(prompts.plans[3], 1).image)
    assert not torch.equal(images[6], images[7])


@FLUENT
@pytest.mark.skipif(not BUNDLED.is_dir(), reason="no detector is bundled")
def test_the_bundled_detector_sees_what_real_scenes_show() -> None:
    prompts = prompt_set("test")
    some = range(0, 553, 4)
    images = torch.stack([prompts.source.scene_of(prompts.plans[i], 7).image for i in some])
    detector = Detector.load("bundled")
    wanted = prompts.prompts
    assert judge(detector, [wanted[i] for i in some], images).scores()["overall"] >= 0.95
    other = shuffled(wanted)
    assert judge(detector, [other[i] for i in some], images).scores()["overall"] <= 0.1
