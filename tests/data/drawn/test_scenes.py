import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from time import process_time

import numpy as np
import pytest
import torch
from PIL import Image

from channelvq.data.drawn.captions import ALL_TASKS, Plan, Thing
from channelvq.data.drawn.scene_plan import Draws, combinations, draw_plan
from channelvq.data.drawn.scenes import Scene, SceneSource, geneval_record
from channelvq.data.drawn.sprites import COLOURS, FLUENT_CLASSES, ShapeSprites, recolour, trim
from channelvq.data.fetched.catalogue import PACKAGES
from channelvq.data.fetched.packages import find_package
from channelvq.errors import InputError
from channelvq.files import write_sums

HAS_FLUENT = all(find_package(name) for name in ("fluent-emoji", "emojibase-data"))
SETS = [
    "shapes",
    pytest.param("fluent", marks=pytest.mark.skipif(not HAS_FLUENT, reason="fluent-emoji not in the cache")),
]
SPLITS = ("train", "validation", "test")


@cache
def scenes(sprites: str, split: str, count: int) -> list[Scene]:
    source = SceneSource(64, split, sprites, tasks=ALL_TASKS)  # type: ignore[arg-type]
    return [source.scene(index) for index in range(count)]


@cache
def plans(sprites: str, split: str, count: int) -> list[Plan]:
    """The plans of the first scenes, without drawing them."""
    source = SceneSource(64, split, sprites)  # type: ignore[arg-type]
    return [
        draw_plan(
            ALL_TASKS[i % 7], source.sprites.names, source.coloured, source.split, Draws("scene", sprites, split, i)
        )
        for i in range(count)
    ]


def about(planned: Sequence[Plan]) -> set[str]:
    return {key for plan in planned for key in combinations(plan)[0]}


def test_same_scene_in_another_process_and_any_order() -> None:
    code = (
        "from channelvq.data.drawn.scenes import SceneSource; import hashlib;"
        "s = SceneSource(64, 'test', 'shapes'); s.scene(9);"
        "print(hashlib.sha256(s.scene(5).image.numpy().tobytes()).hexdigest(), s.scene(5).caption)"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(
        maxsplit=1
    )
    scene = SceneSource(64, "test", "shapes").scene(5)
    assert hashlib.sha256(scene.image.numpy().tobytes()).hexdigest() == there[0]
    assert scene.caption == there[1].strip()


def test_generator_is_ignored_and_splits_and_indices_differ() -> None:
    source = SceneSource(64, "train", "shapes")
    one, two = (source.sample(3, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(one.image, two.image)
    assert (one.text, one.key) == (source.scene(3).caption, source.scene(3).prompt)
    assert not torch.equal(source.scene(3).image, source.scene(9).image)
    assert not torch.equal(source.scene(3).image, SceneSource(64, "test", "shapes").scene(3).image)


@pytest.mark.parametrize("sprites", SETS)
def test_plan_objects_and_boxes_agree(sprites: str) -> None:
    for scene in scenes(sprites, "train", 300):
        wanted = Counter(thing.name for thing in scene.plan.things for _ in range(scene.plan.count))
        assert Counter(item.name for item in scene.objects) == wanted
        for thing in scene.plan.things:
            assert thing.colour is None or (thing.name, thing.colour) in [(o.name, o.colour) for o in scene.objects]
        for item in scene.objects:
            left, top, right, bottom = item.box
            assert 0 <= left < right <= 64
            assert 0 <= top < bottom <= 64
            assert max(right - left, bottom - top) >= 19
        for a in range(len(scene.objects)):
            for b in range(a):
                one, two = scene.objects[a].box, scene.objects[b].box
                assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]


@pytest.mark.parametrize("sprites", SETS)
def test_every_object_is_visible_in_its_box_and_nothing_outside(sprites: str) -> None:
    for scene in scenes(sprites, "train", 120):
        image = scene.image.permute(1, 2, 0).numpy().astype(float)
        outside = np.ones((64, 64), bool)
        for item in scene.objects:
            left, top, right, bottom = item.box
            outside[top:bottom, left:right] = False
            frame = np.zeros((64, 64), bool)
            frame[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = True
            frame[top:bottom, left:right] = False
            contrast = np.abs(image[top:bottom, left:right] - np.median(image[frame], axis=0)).max(axis=2)
            assert np.quantile(contrast, 0.8) > 40
        # The backdrop is plain or a linear gradient: its second differences vanish, except for rounding.
        second = np.abs(np.diff(image, n=2, axis=1)).max(axis=2)
        clear = outside[:, :-2] & outside[:, 1:-1] & outside[:, 2:]
        assert second[clear].max(initial=0) <= 2


@pytest.mark.parametrize("sprites", SETS)
def test_relations_hold_in_the_image(sprites: str) -> None:
    seen = Counter()
    for scene in scenes(sprites, "train", 300):
        if scene.plan.relation is None:
            continue
        first, second = (((o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2) for o in scene.objects)
        assert [o.name for o in scene.objects] == [thing.name for thing in scene.plan.things]
        dx, dy = first[0] - second[0], first[1] - second[1]
        distance = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[scene.plan.relation]
        assert distance > max(12, 0.9 * min(abs(dx), abs(dy)))
        assert distance == max(abs(dx), abs(dy))
        seen[scene.plan.relation] += 1
    assert len(seen) == 4


@pytest.mark.parametrize("sprites", SETS)
def test_held_out_combinations_are_never_in_training(sprites: str) -> None:
    train = {key for plan in plans(sprites, "train", 4000) for keys in combinations(plan) for key in keys}
    test, validation = about(plans(sprites, "test", 1200)), about(plans(sprites, "validation", 1200))
    assert len(test) > 40
    assert len(validation) > 25
    assert not train & test
    assert not train & validation
    assert not test & validation


@pytest.mark.parametrize("sprites", SETS)
def test_training_has_each_class_colour_count_and_relation_and_every_split_each_task(sprites: str) -> None:
    train = plans(sprites, "train", 4000)
    names = {thing.name for plan in train for thing in plan.things}
    assert names == set(SceneSource(64, "train", sprites).sprites.names)  # type: ignore[arg-type]
    assert len(names) >= (40 if sprites == "fluent" else 12)
    assert {thing.colour for plan in train for thing in plan.things} == {None, *COLOURS}
    assert {plan.count for plan in train} == {1, 2, 3, 4}
    assert {plan.relation for plan in train} == {None, "above", "below", "left of", "right of"}
    for split in SPLITS:
        assert Counter(plan.tag for plan in plans(sprites, split, 1204)) == dict.fromkeys(ALL_TASKS, 172)


def test_mirrored_relations_are_one_combination() -> None:
    dog, cat = Thing("dog"), Thing("cat")
    left = Plan("position", (dog, cat), relation="left of")
    assert combinations(left) == combinations(Plan("position", (cat, dog), relation="right of"))
    assert combinations(left) != combinations(Plan("position", (cat, dog), relation="left of"))


def test_geneval_records_put_the_reference_first() -> None:
    record = geneval_record(Plan("position", (Thing("dog"), Thing("teddy bear")), relation="right of"))
    assert record == json.loads(
        '{"tag":"position","include":[{"class":"teddy bear","count":1},'
        '{"class":"dog","count":1,"position":["right of",0]}],"prompt":"a photo of a dog right of a teddy bear"}'
    )
    record = geneval_record(Plan("counting", (Thing("clock"),), count=2))
    assert record["include"] == [{"class": "clock", "count": 2}]
    assert record["exclude"] == [{"class": "clock", "count": 3}]
    record = geneval_record(Plan("color_attr", (Thing("wine glass", "purple"), Thing("apple", "black"))))
    assert record["include"][1] == {"class": "apple", "count": 1, "color": "black"}


def test_captions_can_be_all_prompts_all_free_or_half_and_half() -> None:
    same = {}
    for captions in ("geneval", "free", "mixed"):
        source = SceneSource(64, "train", "shapes", captions=captions)  # type: ignore[arg-type]
        made = [source.scene(index) for index in range(120)]
        same[captions] = sum(scene.caption == scene.prompt for scene in made)
    assert same["geneval"] == 120
    assert same["free"] == 0
    assert 35 < same["mixed"] < 85


@pytest.mark.parametrize("colour", COLOURS)
def test_recoloured_things_are_nearest_to_their_own_colour(colour: str) -> None:
    palette = np.array(list(COLOURS.values()), float)
    for name in ShapeSprites.names:
        pixels = np.asarray(ShapeSprites().picture(name, colour), dtype=float)
        mean = pixels[pixels[..., 3] > 200][:, :3].mean(axis=0)
        assert list(COLOURS)[int(((palette - mean) ** 2).sum(axis=1).argmin())] == colour


@pytest.mark.skipif(not HAS_FLUENT, reason="fluent-emoji is not in the cache")
def test_all_classes_have_an_emoji_and_keep_their_colour() -> None:
    source = SceneSource(64, "train", "fluent")
    assert source.sprites.names == tuple(sorted(FLUENT_CLASSES))
    palette = np.array(list(COLOURS.values()), float)
    for number, name in enumerate(source.sprites.names):
        colour = list(COLOURS)[number % 10]
        pixels = np.asarray(source.sprites.picture(name, colour), dtype=float)
        mean = pixels[pixels[..., 3] > 200][:, :3].mean(axis=0)
        assert list(COLOURS)[int(((palette - mean) ** 2).sum(axis=1).argmin())] == colour, name


def test_scenes_of_a_package_use_its_pictures_and_only_the_classes_it_has(tmp_path: Path) -> None:
    names = ["apple", "banana", "bus", "car", "cat", "cup", "dog", "sheep"]
    for name in ("fluent-emoji", "emojibase-data"):
        folder = tmp_path / PACKAGES[name].folder
        (folder / "images").mkdir(parents=True)
        (folder / "SOURCE.json").write_text("{}")
    labels = [{"hexcode": FLUENT_CLASSES[name], "label": name} for name in names]
    (tmp_path / PACKAGES["emojibase-data"].folder / "data.json").write_text(json.dumps(labels))
    for name in names:
        picture = Image.new("RGBA", (64, 64))
        picture.paste((200, 30, 30, 255), (16, 8, 48, 56))
        picture.save(
            tmp_path / PACKAGES["fluent-emoji"].folder / "images" / f"{FLUENT_CLASSES[name]}.webp", lossless=True
        )
    for name in ("fluent-emoji", "emojibase-data"):
        write_sums(tmp_path / PACKAGES[name].folder)
    source = SceneSource(64, "train", "fluent", cache=tmp_path)
    assert source.sprites.names == tuple(names)
    for scene in (source.scene(index) for index in range(60)):
        for item in scene.objects:
            left, top, right, bottom = item.box
            assert (right - left) / (bottom - top) == pytest.approx(32 / 48, abs=0.05)
            centre = scene.image[:, (top + bottom) // 2, (left + right) // 2].tolist()
            assert centre == pytest.approx((200, 30, 30) if item.colour is None else COLOURS[item.colour], abs=12)


def test_shapes_look_different() -> None:
    masks = {}
    for name in ShapeSprites.names:
        alpha = ShapeSprites().picture(name, None).getchannel("A").resize((20, 20))
        masks[name] = np.asarray(alpha, dtype=float) / 255
    for one in masks:
        assert all(one == other or np.abs(masks[one] - masks[other]).mean() > 0.08 for other in masks)


def test_trimming_keeps_the_visible_part_and_its_proportions() -> None:
    picture = Image.new("RGBA", (200, 200))
    picture.paste((10, 20, 30, 255), (50, 80, 130, 100))
    trimmed = trim(picture)
    assert trimmed.size == (96, 24)
    assert np.asarray(trimmed)[..., 3].min() > 200
    with pytest.raises(InputError, match="no visible pixel"):
        trim(Image.new("RGBA", (8, 8)))
    assert recolour(trimmed, "red").getpixel((40, 10)) == (*COLOURS["red"], 255)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 16}, "size 16"),
        ({"length": 0}, "length 0"),
        ({"tasks": ("counting", "nope")}, "nope.*single_object"),
        ({"captions": "none"}, "captions 'none'"),
        ({"sprites": "clipart"}, "sprites 'clipart': the sets are fluent, shapes"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SceneSource(**({"sprites": "shapes"} | options))  # type: ignore[arg-type]


def test_too_few_classes_for_a_task_is_an_error_not_a_loop() -> None:
    with pytest.raises(InputError, match="no two_object scene of the test split can be made of 2 classes"):
        draw_plan("two_object", ("circle", "star"), [], "test", Draws("few"))


def test_a_scene_is_cheap() -> None:
    source = SceneSource(64, "train", "shapes")
    for index in range(200):
        source.scene(index)
    started = process_time()
    for index in range(200):
        source.scene(index)
    # About 0.5 ms each; the bound is what training can afford.
    assert (process_time() - started) / 200 < 0.003
