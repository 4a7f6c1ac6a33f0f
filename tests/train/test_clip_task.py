"""Training on clips: resumed equal to the bit, what is dropped, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.train.runs import assert_equal, everything

from channelvq import ClipTokenizer
from channelvq.errors import InputError
from channelvq.train.clip_task import ClipRecipe, ClipTask
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.run import load_recipe, train

TINY = (
    "model.image.image_size=16", "model.image.latent_channels=8", "model.image.network.base_channels=8",
    "model.image.network.stem=4", "model.image.network.num_blocks=1", "model.image.quantizer.codebook_size=32",
    "model.frames=5", "model.width=16", "model.num_blocks=1", "data.validation_images=4", "objective.start_clips=8",
    "train.batch_size=4", "train.log_every=1", "train.device=cpu", "train.ema=0.9", "train.warmup_steps=1",
    "train.steps=4", "objective.time_alpha=0.5", "nested.alpha=0.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares that move, each of its own colour and speed."""
    folder = tmp_path_factory.mktemp("mine")
    for number in range(12):
        pictures = []
        for step in range(5):
            picture = Image.new("RGB", (16, 16), (20 * number, 128, 255 - 20 * number))
            left = step * (1 + number % 3)
            picture.paste((255, 20 * number, 0), (left, number, left + 4, number + 4))
            pictures.append(picture)
        pictures[0].save(folder / f"{number}.webp", save_all=True, append_images=pictures[1:], lossless=True)
    return folder


def recipe(mine: Path, output: Path, *overrides: str) -> ClipRecipe:
    source = f"data.sources.clips={{root: {mine}, validation: 0.3, test: 0.0}}"
    return load_recipe("small/clips", [*TINY, source, f"train.output_dir={output}", *overrides], of=ClipRecipe)


class Stops(ClipTask):
    """Dies in the middle of a run, as a machine does."""

    def losses(self, name, models, batch, step, part):  # type: ignore[no-untyped-def]
        if step == 3:
            raise KeyboardInterrupt
        return super().losses(name, models, batch, step, part)


def test_resumed_is_uninterrupted_to_the_bit(mine: Path, tmp_path: Path) -> None:
    config = recipe(mine, tmp_path / "whole", "train.checkpoint_every=2")
    assert Engine(ClipTask(config), config.train, config).fit() is not None
    parts = recipe(mine, tmp_path / "parts", "train.checkpoint_every=2")
    with pytest.raises(KeyboardInterrupt):
        Engine(Stops(parts), parts.train, parts).fit()
    parts = replace(parts, train=replace(parts.train, resume=True))
    Engine(ClipTask(parts), parts.train, parts).fit()
    assert_equal(everything(tmp_path / "whole"), everything(tmp_path / "parts"))


def test_a_training_learns_tells_its_figures_and_is_loaded(mine: Path, tmp_path: Path) -> None:
    config = recipe(mine, tmp_path, "train.steps=20", "train.ema=0", "train.learning_rate=5e-3")
    figures = train(config)
    assert figures is not None
    assert {"use", "use_changes", "psnr_1", "psnr_2", "psnr_8", "flicker_8", "psnr_first"} <= figures.keys()
    lines = [line["pixel"] for line in read_metrics(tmp_path) if line["kind"] == "train"]
    assert sum(lines[-5:]) < 0.7 * sum(lines[:5])
    tok = ClipTokenizer.from_pretrained(tmp_path / "final")
    assert tok.tokenize(mine / "3.webp").shape == (1, 3, 8)
    assert bool(tok.motion_quantizer.quantizer.started)
    assert "ClipTokenizer.from_pretrained" in (tmp_path / "final/README.md").read_text()
    assert len(list((tmp_path / "samples").glob("*.png"))) == 1


def test_what_is_dropped_depends_on_the_step_and_the_place_in_the_global_batch(mine: Path, tmp_path: Path) -> None:
    task = ClipTask(recipe(mine, tmp_path, "train.batch_size=64", "objective.whole_first=0.5"))
    keep = task._keep(64, step=3, part=0)
    assert keep.shape == (64, 3, 8)
    assert torch.equal(torch.cat([task._keep(32, 3, part) for part in (0, 1)]), keep)
    assert not torch.equal(task._keep(64, step=4, part=0), keep)
    counts = keep.sum(2)
    assert keep[:, 0, 0].all()  # there is no clip without a first token
    assert (keep.int().diff(dim=2) <= 0).all()  # prefixes of channels
    there = counts > 0
    assert (there.int().diff(dim=1) <= 0).all()  # and of time
    assert 10 < int((~there).any(1).sum()) < 50
    whole = (counts[:, 0] == 8) & (counts[:, 1] > 0) & (counts[:, 1] < 8)
    assert 2 < int(whole.sum()) < 40  # all of the first frame, less of what changes
    assert ((counts[:, 1] == counts[:, 2]) | (counts[:, 2] == 0)).all()


def test_without_dropout_nothing_is_dropped(mine: Path, tmp_path: Path) -> None:
    task = ClipTask(recipe(mine, tmp_path, "nested.alpha=0", "objective.time_alpha=0"))
    assert all(bool(task._keep(4, step, 0).all()) for step in range(20))


def test_a_group_that_no_clip_of_the_batch_has_tokens_of(mine: Path, tmp_path: Path) -> None:
    assert train(recipe(mine, tmp_path, "objective.time_alpha=1", "train.batch_size=1", "train.steps=6")) is not None


def test_an_image_tokenizer_is_the_start(mine: Path, tmp_path: Path, tiny_tokenizer: Path) -> None:
    config = recipe(mine, tmp_path, f"objective.start_from={tiny_tokenizer}")
    with pytest.raises(InputError, match="is another model than the recipe's"):
        ClipTask(config)
    first = ClipTask(recipe(mine, tmp_path)).tokenizer.image
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.01)
    first.quantizer.quantizer.started.fill_(True)
    first.save_pretrained(tmp_path / "image")
    task = ClipTask(recipe(mine, tmp_path, f"objective.start_from={tmp_path / 'image'}"))
    task.start()
    for name, tensor in first.state_dict().items():
        assert torch.equal(task.tokenizer.image.state_dict()[name], tensor), name
    assert bool(task.tokenizer.motion_quantizer.quantizer.started)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.frames=1"], "nothing changes in clips of one frame"),
        (["data.sources.clips.frames=7"], r"expected clips of 5 frames \(model.frames\), kind clips; got clips of 7"),
        (["data.sources.clips.weight=0", "data.sources.s={kind: waves}"], "expected clips of 5 .*got pictures"),
        (["data.sources.s={kind: waves}"], "differ in shape"),
        (["train.accumulation=2"], "train.accumulation: codebooks of kind ema learn from all of a batch"),
    ],
)
def test_what_cannot_be_trained_on_is_named(overrides: list[str], message: str, mine: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        ClipTask(recipe(mine, tmp_path, *overrides))


def test_a_batch_in_parts_is_the_batch(mine: Path, tmp_path: Path) -> None:
    runs = [recipe(mine, tmp_path / str(parts), "model.image.quantizer.kind=plain", f"train.accumulation={parts}")
            for parts in (1, 2)]  # fmt: skip
    for run in runs:
        train(run)
    whole, parts = ([line["pixel"] for line in read_metrics(run.train.output_dir) if "pixel" in line] for run in runs)
    assert parts == pytest.approx(whole, rel=1e-3)


def test_clips_are_no_data_of_a_tokenizer_of_pictures(mine: Path, tmp_path: Path) -> None:
    config = load_recipe("small/smoke", [f"data.sources={{clips: {{kind: clips, root: {mine}}}}}",
                                         "data.sources.scenes.weight=0", "model.image_size=16",
                                         "data.validation_images=1", "data.sources.clips.validation=0.3"])  # fmt: skip
    with pytest.raises(InputError, match="kind clips is for recipes of task: clips"):
        config.build()
