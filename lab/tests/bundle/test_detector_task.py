"""The detector's recipe: what its batches hold, that it learns, and that a stopped run goes on to the same end."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from channelvq.errors import InputError
from channelvq.nn.detector import Detector
from channelvq.train.car_task import CARRecipe
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.run import load_recipe, train
from lab.bundle.detection_loss import NOTHING, UNSAID
from lab.bundle.detector_task import MOST_OBJECTS, DetectorRecipe, DetectorTask

TINY = (
    "data.sprites=shapes", "tokenizer=null", "model.widths=[8,16,16]", "model.num_blocks=1", "train.batch_size=16",
    "train.log_every=1", "train.device=cpu", "train.precision='no'", "train.warmup_steps=1",
    "train.learning_rate=0.005",
)  # fmt: skip


def recipe(folder: Path, *overrides: str) -> DetectorRecipe:
    return load_recipe("lab/bundle/detector.yaml", [*TINY, f"train.output_dir={folder}", *overrides], of=DetectorRecipe)


def test_batches_hold_scenes_of_training_and_their_truth(tmp_path: Path) -> None:
    config = recipe(tmp_path, "damaged=0", "shifted=0")
    task = DetectorTask(config)
    batch = next(task.batches(2, 0, 1))
    images, rows = batch[:, : 3 * 64 * 64].view(16, 3, 64, 64), batch[:, 3 * 64 * 64 :].view(16, MOST_OBJECTS, 6)
    for i in (0, 7, 15):
        scene = task.source.scene(2 * 16 + i)
        assert torch.equal(((images[i] + 1) * 127.5).round().byte(), scene.image)
        assert int((rows[i, :, 4] != NOTHING).sum()) == len(scene.objects)
        for row, item in zip(rows[i], scene.objects, strict=False):
            assert row[:4].tolist() == list(item.box)
            assert int(row[4]) == (UNSAID if item.colour else task.source.sprites.names.index(item.name))
            assert (*task.network.config.colours, None)[int(row[5])] == item.colour


def test_shifted_scenes_say_names_only(tmp_path: Path) -> None:
    plain = DetectorTask(recipe(tmp_path, "damaged=0", "shifted=0"))
    task = DetectorTask(recipe(tmp_path, "damaged=0", "shifted=0.5"))
    (batch, before), size = (next(each.batches(0, 0, 1)) for each in (task, plain)), 3 * 64 * 64
    rows = batch[:, size:].view(16, MOST_OBJECTS, 6)
    shifted = (batch[:, :size] != before[:, :size]).any(1)
    assert 3 <= int(shifted.sum()) <= 13
    for i in range(16):
        there = rows[i, :, 4] != NOTHING
        assert torch.equal(there, before[i, size:].view(MOST_OBJECTS, 6)[:, 4] != NOTHING)
        names, colours = rows[i, there, 4], rows[i, there, 5]
        assert bool((colours == UNSAID).all() if shifted[i] else (colours >= 0).all())
        if shifted[i]:
            assert [plain.source.sprites.names[int(n)] for n in names] == [o.name for o in task.source.scene(i).objects]


def test_damage_and_restoring_come_to_their_shares_of_the_images(tmp_path: Path) -> None:
    plain = next(DetectorTask(recipe(tmp_path, "damaged=0", "shifted=0")).batches(0, 0, 1))
    for change in (("damaged=1",), ("damaged=0", "tokenizer=bundled", "restored=0.5")):
        changed = next(DetectorTask(recipe(tmp_path, "shifted=0", *change)).batches(0, 0, 1))
        assert torch.equal(changed[:, -24:], plain[:, -24:])
        other = int((changed != plain).any(1).sum())
        assert 4 <= other < 16, change


def test_two_ranks_share_what_one_has(tmp_path: Path) -> None:
    task = DetectorTask(recipe(tmp_path, "damaged=0"))
    halves = [next(task.batches(1, rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), next(task.batches(1, 0, 1)))


def test_it_learns_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    steps = ("train.steps=30", "train.evaluate_every=30", "train.checkpoint_every=15")
    whole = recipe(tmp_path / "whole", *steps)
    figures = train(whole)
    assert figures is not None
    assert set(figures) == {"real", "damaged", "threshold"}
    terms = [line for line in read_metrics(tmp_path / "whole") if line["kind"] == "train"]
    assert terms[-1]["objectness"] < 0.7 * terms[0]["objectness"]

    class StopAt15(DetectorTask):
        def losses(self, name, models, batch, step, part):  # type: ignore[no-untyped-def]
            if step == 15:
                raise KeyboardInterrupt
            return super().losses(name, models, batch, step, part)

    part = recipe(tmp_path / "part", *steps)
    with pytest.raises(KeyboardInterrupt):
        Engine(StopAt15(part), part.train, part).fit()
    train(recipe(tmp_path / "part", *steps, "train.resume=true"))
    one, two = (load_file(tmp_path / name / "final/model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert Detector.load(tmp_path / "whole/final").config.threshold == figures["threshold"]


def test_a_recipe_of_another_kind_is_named() -> None:
    with pytest.raises(InputError, match="expected one with task: car, this one has task: detector"):
        load_recipe("lab/bundle/detector.yaml", of=CARRecipe)
    with pytest.raises(InputError, match=r"image_size: .*multiple of 8"):
        load_recipe("lab/bundle/detector.yaml", ["image_size=60"], of=DetectorRecipe)
