"""What a newcomer asks `cvq` about recipes, runs and prompts before and after a training."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from channelvq import CAR, __version__
from channelvq.car.text import UnknownWordsWarning
from channelvq.config import recipe_names, to_dict
from channelvq.train.progress import LOGGER
from channelvq.train.recipe_text import purpose, settings_help
from channelvq.train.run import load_recipe

Cvq = Callable[..., tuple[int, str, str]]
TINY = (
    "model.image_size=32", "model.latent_channels=4", "model.network.base_channels=16", "model.network.stem=2",
    "model.quantizer.codebook_size=16", "objective.start_images=16", "data.validation_images=4", "train.steps=4",
    "train.batch_size=4", "train.log_every=1", "train.warmup_steps=1", "train.output_dir=run",
)  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    LOGGER.setLevel(logging.INFO)


def draw(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_the_version_alone(cvq: Cvq, here: Path) -> None:
    assert cvq("--version") == (0, f"channelvq {__version__}\n", "")


def test_recipes_are_listed_with_what_each_is_for(cvq: Cvq, here: Path) -> None:
    code, stdout, _ = cvq("recipes")
    listed = [line.split()[0] for line in stdout.splitlines() if not line.startswith(" ")]
    assert (code, listed) == (0, recipe_names())
    assert re.search(r"^small/smoke +Learns to reconstruct scenes", stdout, re.MULTILINE)
    for name in recipe_names():
        assert purpose(name)[0].isalnum(), name
        assert not purpose(name).startswith("cvq "), name


@pytest.mark.parametrize("command", ["train", "show", "plan"])
def test_a_setting_with_dashes_is_told_how_it_is_written(command: str, cvq: Cvq, here: Path) -> None:
    for words, meant in ((("--train.steps=60",), "train.steps=60"), (("--train.steps", 60), "train.steps=VALUE")):
        code, _, stderr = cvq(command, "small/smoke", *words)
        assert (code, stderr) == (2, f"error: {words[0]}: a setting of a recipe has no dashes; give {meant}\n")
    assert "No such option" in cvq(command, "small/smoke", "--jsno=a.json")[2]  # a dot in the value alone


@pytest.mark.parametrize("name", recipe_names())
def test_a_shown_recipe_is_the_recipe_and_tells_of_every_setting(name: str, cvq: Cvq, here: Path) -> None:
    code, stdout, _ = cvq("show", name, "train.steps=123456", "train.seed=7")
    assert code == 0
    (here / "own.yaml").write_text(stdout)
    assert to_dict(load_recipe("own.yaml")) == to_dict(load_recipe(name, ["train.steps=123456", "train.seed=7"]))
    assert untold(load_recipe(name)) == []


def untold(settings: Any) -> list[str]:
    """Settings without a help."""
    if isinstance(settings, dict):
        return [missing for value in settings.values() for missing in untold(value)]
    if not is_dataclass(settings):
        return []
    told = settings_help(type(settings))
    missing = [f"{type(settings).__name__}.{name}" for name, text in told.items() if not text]
    return missing + [more for field in fields(settings) for more in untold(getattr(settings, field.name))]


def test_a_quiet_training_says_how_it_ended_and_nothing_else(cvq: Cvq, here: Path) -> None:
    code, stdout, stderr = cvq("train", "small/smoke", *TINY, "--quiet")
    assert code == 0
    assert re.fullmatch(r"done: run/final .*\n", stdout)
    assert stderr == ""
    assert len((here / "run/metrics.jsonl").read_text().splitlines()) == 5  # four steps and an evaluation, as ever


def test_lines_of_a_training_tell_the_time_left(cvq: Cvq, here: Path) -> None:
    _, stdout, _ = cvq("train", "small/smoke", *TINY)
    lines = " ".join(stdout.split()).split("train step ")[1:]
    assert [bool(re.search(r"left 0:00:\d\d", line)) for line in lines] == [True, True, True, False]
    assert "left" not in (here / "run/metrics.jsonl").read_text()


def test_warnings_alone_are_a_level_of_their_own(cvq: Cvq, here: Path) -> None:
    _, stdout, _ = cvq("train", "small/smoke", *TINY, "--log-level", "warning")
    assert "train step" not in stdout
    assert cvq("train", "small/smoke", "--log-level", "loud")[0] == 2


def test_a_plan_tells_the_hours_on_this_machine(cvq: Cvq, here: Path) -> None:
    steps = [setting for setting in TINY if not setting.startswith("train.steps")] + ["train.steps=3600"]
    code, stdout, stderr = cvq("plan", "small/smoke", *steps, "--time", "--json", "plan.json")
    assert code == 0, stderr
    here_ = json.loads((here / "plan.json").read_text())["this_machine"]
    assert here_["hours"] == pytest.approx(here_["seconds_a_step"], rel=1e-3)  # of 3,600 steps
    assert 0 < here_["seconds_a_step"] < 60
    assert "on this machine (cpu" in stdout
    assert not (here / "run").exists()


def test_what_a_run_kept_back_is_measured_by_its_split(cvq: Cvq, here: Path) -> None:
    draw(here / "mine", 40)
    mine = "data.sources.mine={kind: folder, root: mine, test: 0.3, validation: 0.2}"
    assert cvq("train", "small/smoke", *TINY, mine, "data.sources.scenes.weight=0", "--quiet")[0] == 0
    code, _, stderr = cvq("evaluate", "reconstruction", "run/final", "--split", "test", "--json", "f.json")
    assert (code, stderr) == (0, "")
    protocol = json.loads((here / "f.json").read_text())["protocol"]
    kept_back = sum(1 for _ in load_recipe("run/config.yaml").data.sources["mine"].build(32, "test")._entries)  # type: ignore[attr-defined]
    assert (protocol["split"], protocol["n"]) == ("test", kept_back)
    assert 0 < kept_back < 40
    words = ("bundled", "--split", "test", "--run", "run", "--size", "32", "--json", "other.json")
    assert cvq("evaluate", "reconstruction", *words)[0] == 0
    code, stdout, stderr = cvq("compare", "f.json", "other.json")
    assert (code, stderr) == (0, "")
    assert "other" in stdout
    for folder in ("mine", ".", "./mine"):
        code, _, stderr = cvq("evaluate", "reconstruction", "run/final", folder, "--max-images", 4)
        assert code == 0
        assert f"warning: {folder}: the tokenizer was trained on images of it; --split test" in stderr
    draw(here / "others", 4)
    assert cvq("evaluate", "reconstruction", "run/final", "others")[2] == ""


def test_a_split_needs_a_run_and_no_data(cvq: Cvq, here: Path) -> None:
    for words, what in (
        (("bundled",), "expected DATA"),
        (("bundled", "--split", "test"), "--split test: bundled is not the final/ of a run"),
        (("bundled", "scenes", "--split", "test"), "give one of them"),
    ):
        for command in (("evaluate", "reconstruction"), ("doctor",)):
            code, _, stderr = cvq(*command, *words)
            assert (code, stderr.count("\n")) == (2, 1), stderr
            assert what in stderr


def test_data_that_is_not_there_is_told_what_it_could_be(cvq: Cvq, here: Path) -> None:
    for data, near in (("my/photos", ""), ("phottos", "; did you mean photos?")):
        code, _, stderr = cvq("evaluate", "reconstruction", "bundled", data)
        expected = r"expected a folder of images, or a held-out set \(emoji, photos, scenes, .*\)"
        assert code == 2
        assert re.fullmatch(rf"error: DATA '{data}': no such file or folder; {expected}{re.escape(near)}\n", stderr)


def test_a_folder_does_not_take_the_name_of_a_built_in_set(cvq: Cvq, here: Path) -> None:
    draw(here / "scenes", 2)
    counts = {}
    for data in ("scenes", "./scenes"):
        code, _, stderr = cvq("evaluate", "reconstruction", "bundled", data, "--max-images", 3, "--json", "f.json",
                              "--features", "none")  # fmt: skip
        assert code == 0
        assert ("the folder here is ./scenes" in stderr) == (data == "scenes")
        counts[data] = json.loads((here / "f.json").read_text())["protocol"]["n"]
    assert counts == {"scenes": 3, "./scenes": 2}


def test_words_that_no_caption_had_are_named() -> None:
    car = CAR.from_pretrained("bundled")
    with pytest.warns(UnknownWordsWarning, match="'grandmother', 'Paris'"):
        car.generate("a photo of a grandmother Paris", num_tokens=1, guidance_scale=1.0, exact=False)
    assert car.text.unknown_words("a photo of two bananas") == []
    assert car.text.unknown_words("a photo of a purple bus and a yellow bird") == []
    assert car.text.unknown_words("") == []
    assert car.text.unknown_words("a Ünïcode 猫 bus") == ["Ünïcode", "猫"]
