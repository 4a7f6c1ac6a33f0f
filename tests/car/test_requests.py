"""What people ask of a generator beside a prompt: negative prompts, several images, a picture to start from, a size."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.car.conftest import tiny_text
from tests.car.oracle import naive_ids

from channelvq.car.config import CARConfig
from channelvq.car.generation import Generation
from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.errors import InputError
from channelvq.nn.resampler import ResamplerConfig
from channelvq.tokenizer import CVQTokenizer

PROMPTS = ["a green dog", "a red car left of a blue umbrella", "", "two cats", "a"]
AGAINST = "a red car"


def test_guidance_leads_away_from_a_negative_prompt(car64: CAR) -> None:
    settings = {"guidance_scale": 3.0, "seed": 5}
    naive = naive_ids(car64, PROMPTS, SamplingSettings(**settings), AGAINST)  # type: ignore[arg-type]
    assert torch.equal(car64.generate(PROMPTS, negative_prompt=AGAINST, **settings).ids, naive)  # type: ignore[arg-type]
    several = car64.generate(PROMPTS, negative_prompt=[AGAINST] * 5, exact=False, **settings)  # type: ignore[arg-type]
    assert torch.equal(several.ids, naive)
    assert not torch.equal(car64.generate(PROMPTS, **settings).ids, naive)  # type: ignore[arg-type]


def test_each_prompt_may_have_its_own_negative_one(car: CAR) -> None:
    ids = car.generate(PROMPTS[:2], negative_prompt=["", AGAINST], seed=3).ids
    assert torch.equal(ids[:1], car.generate(PROMPTS[0], seed=3).ids)
    assert torch.equal(ids[1:], car.generate(PROMPTS[1], negative_prompt=AGAINST, seed=4).ids)


def test_several_images_of_a_prompt_are_those_of_its_seeds(car: CAR) -> None:
    whole = car.generate(PROMPTS[:2], num_images_per_prompt=3, seed=7)
    assert whole.seeds == tuple(range(7, 13))
    prompts = [prompt for prompt in PROMPTS[:2] for _ in range(3)]
    assert torch.equal(whole.ids, car.generate(prompts, seed=7).ids)
    start = torch.tensor([[1, 2], [3, 4]])
    ids = car.generate(PROMPTS[:2], num_images_per_prompt=3, prefix_ids=start).ids
    assert torch.equal(ids[:, :2], start.repeat_interleave(3, 0))


def test_a_callback_sees_every_token_and_changes_nothing(car: CAR) -> None:
    seen: list[Generation] = []
    done = car.generate(PROMPTS, seed=1, callback=seen.append)
    assert [step.ids.shape[1] for step in seen] == list(range(1, 9))
    assert torch.equal(done.ids, car.generate(PROMPTS, seed=1).ids)
    assert seen[-1] is done


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"negative_prompt": ["a", "b", "c"]}, "negative_prompt: 3 texts for 2 prompts"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: expected a whole number"),
        ({"seed": 2**63 - 3, "num_images_per_prompt": 2}, "seed: expected a whole number of at most 2"),
        ({"size": 32}, "this tokenizer makes images of"),
        ({"size": (0, 4)}, "size"),
    ],
)
def test_what_cannot_be_asked_is_named(car: CAR, wanted: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        car.generate(["a green dog", "two cats"], **wanted)


def test_a_negative_prompt_without_guidance_is_said_to_do_nothing(car: CAR) -> None:
    with pytest.warns(UserWarning, match="negative_prompt: without guidance") as caught:
        car.generate("a green dog", guidance_scale=1.0, negative_prompt="two cats", num_tokens=1)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        car.generate("a green dog", guidance_scale=1.0, num_tokens=1)


@pytest.fixture(scope="module")
def any_size(car: CAR) -> CAR:
    """A generator of the same weights, whose tokenizer has a resampler."""
    torch.manual_seed(0)
    tokenizer = CVQTokenizer(replace(car.tokenizer.config, resampler=ResamplerConfig(width=16))).eval()
    model = CAR(CARConfig(backbone=car.config.backbone, max_text_tokens=24), tokenizer, tiny_text())
    return model.eval()


def test_images_come_in_the_size_that_is_asked_for(any_size: CAR) -> None:
    drawn = any_size.generate("a green dog", size=(24, 40))
    assert drawn.images[0].size == (40, 24)
    assert drawn.images[0].tobytes() == any_size.tokenizer.detokenize(drawn.ids, size=(24, 40))[0].tobytes()
    for step in any_size.stream("a green dog", 4, size=20):
        assert step.images[0].size == (20, 20)
    assert torch.equal(step.ids, drawn.ids)


def photograph(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder / "photo.png"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command(car: CAR, cvq, here: Path) -> None:  # type: ignore[no-untyped-def]
    car.save_pretrained(here / "car")
    photo = photograph(here)
    words = ["generate", "a green dog", "two cats", "--car", "car", "--num-images", 2, "--from", photo, "--keep", 3,
             "--negative-prompt", AGAINST, "--sheet", "sheet.png", "--seed", 4]  # fmt: skip
    code, out, err = cvq(*words)
    assert code == 0, err
    start = car.tokenizer.tokenize(photo)[:, :3].expand(2, 3)
    expected = car.generate(
        ["a green dog", "two cats"], num_images_per_prompt=2, prefix_ids=start, negative_prompt=AGAINST, seed=4
    )
    for i, image in enumerate(expected.images):
        with Image.open(here / f"generated/{i:04d}.png") as written:
            assert written.tobytes() == image.tobytes()
    with Image.open(here / "sheet.png") as written:
        assert written.width > 2 * 16
    assert out == "4 image(s) -> generated/\n"
    code, out, _ = cvq("generate", "a green dog", "--car", "car", "--stream", "drawing", "--every", 4)
    assert (code, out) == (0, "1 image(s) -> generated/, and as they get richer -> drawing/\n")
    assert (here / "generated/0000.png").is_file()
    assert len(list((here / "drawing").iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", 3], "--keep goes with --from"),
        (["--from", "photo.png", "--keep", 9], "keep: expected a whole number"),
        (["--size", "24x"], "--size: expected 96 or 96x128"),
        (["--size", "24x40"], "this tokenizer makes images of"),
        (["--sheet", "photo.png", "--from", "photo.png"], "photo.png"),
    ],
)
def test_wrong_wishes_are_one_line(car: CAR, cvq, here: Path, words: list, message: str) -> None:  # type: ignore[no-untyped-def]
    car.save_pretrained(here / "car")
    photograph(here)
    code, _, err = cvq("generate", "a green dog", "--car", "car", *words)
    assert code == 2
    assert message in " ".join(err.split())
