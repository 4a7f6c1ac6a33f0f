"""Model cards of what users train."""

import re
from pathlib import Path

import pytest
from PIL import Image

from channelvq import CVQTokenizer
from channelvq.errors import InputError
from channelvq.train.run import load_recipe, train

TINY = (
    "model.image_size=32", "model.latent_channels=4", "model.network.base_channels=16", "model.network.stem=2",
    "model.quantizer.codebook_size=16", "objective.start_images=16", "data.validation_images=4", "train.steps=2",
    "train.batch_size=4", "train.warmup_steps=1",
)  # fmt: skip


def trained(folder: Path, *more: str, command: str | None = None) -> str:
    train(load_recipe("small/smoke", [*TINY, f"train.output_dir={folder}", *more]), command=command)
    return (folder / "final/README.md").read_text()


def test_a_card_tells_what_was_done_and_gives_no_licence_away(tmp_path: Path) -> None:
    text = trained(tmp_path / "mine", command="cvq train small/smoke train.steps=2")
    assert "apache" not in text.lower()
    assert "license:" not in text.split("---")[1]
    assert "None is given yet" in text
    assert "pushed to the Hub" not in text
    for part in ("# mine\n", "`cvq train small/smoke train.steps=2`: 2 steps of 4 images", "kind `scenes`",
                 "4 images of the validation split", "| psnr_4 |", 'from_pretrained("mine")'):  # fmt: skip
        assert part in text
    pictures = "mine/final/samples.png", "mine/samples/step-00000002.png"
    assert len({(tmp_path / picture).read_bytes() for picture in pictures}) == 1
    assert CVQTokenizer.from_pretrained(tmp_path / "mine/final").num_tokens == 4


def test_a_licence_is_the_users_and_may_come_later(tmp_path: Path) -> None:
    trained(tmp_path)
    text = trained(tmp_path, "train.license=cc-by-4.0", "train.resume=true")
    assert "license: cc-by-4.0" in text.split("---")[1]
    for bad in ("", "mit\nlicense: x", "[a]"):
        with pytest.raises(InputError, match=r"train\.license"):
            load_recipe("small/smoke", [f"train.license={bad!r}"])


def test_folders_above_the_data_stay_private(tmp_path: Path) -> None:
    pictures = tmp_path / "secret/holiday"
    pictures.mkdir(parents=True)
    for i in range(40):
        Image.effect_noise((40, 40), 50 + i).convert("RGB").save(pictures / f"{i}.png")
    settings = ("data.sources.scenes.weight=0", f"data.sources.mine={{kind: folder, root: {pictures}}}")
    command = f"cvq train small/own data.sources.mine.root={pictures} train.steps=2"
    text = trained(tmp_path / "run", *settings, "data.sources.mine.validation=0.3", command=command)
    assert "`cvq train small/own data.sources.mine.root=holiday train.steps=2`" in text
    assert "root `holiday`" in text
    assert "secret" not in text


def test_a_card_that_the_user_wrote_is_left_alone(tmp_path: Path) -> None:
    trained(tmp_path)
    (tmp_path / "final/README.md").write_text("My own words.\n")
    assert trained(tmp_path, "train.resume=true") == "My own words.\n"


def test_what_is_saved_without_a_card_says_that_no_licence_is_given(tmp_path: Path) -> None:
    CVQTokenizer.from_pretrained("bundled").save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "No licence is given here" in text
    assert "apache" not in text
    assert "pushed to the Hub" not in text


def test_views_of_few_pictures_are_told_as_such(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(40):
        Image.effect_noise((40, 40), 50 + i).convert("RGB").save(pictures / f"{i}.png")
    settings = ("data.sources.scenes.weight=0", f"data.sources.mine={{kind: folder, root: {pictures}}}")
    text = trained(
        tmp_path / "run", *settings, "data.sources.mine.validation=0.3", "data.sources.mine.crop=random",
        "data.validation_images=64",
    )  # fmt: skip
    found = re.search(r"On 64 views of the (\d+) images of the validation split", text)
    assert found
    assert 1 <= int(found[1]) < 40
