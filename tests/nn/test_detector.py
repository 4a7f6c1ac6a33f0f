"""The detector's decoding of synthetic maps, and its files."""

import math
from pathlib import Path

import pytest
import torch

from channelvq.errors import InputError
from channelvq.nn.detector import Detector, DetectorConfig, DetectorMaps, decode

CLASSES, COLOURS = ("cat", "dog", "cup"), ("red", "blue")


def empty(side: int = 8) -> DetectorMaps:
    maps = {"boxes": 4, "classes": len(CLASSES), "colours": len(COLOURS) + 1}
    return DetectorMaps(
        torch.full((1, side, side), -20.0), **{k: torch.zeros(1, n, side, side) for k, n in maps.items()}
    )


def put(maps: DetectorMaps, x: int, y: int, name: str, colour: int, logit: float = 4.0) -> None:
    """A thing of 16 x 24 pixels, its centre a quarter of a cell right of the cell's."""
    maps.objectness[0, y, x] = logit
    maps.boxes[0, :, y, x] = torch.tensor([0.25, 0.0, math.log(2), math.log(3)])
    maps.classes[0, CLASSES.index(name), y, x] = 20.0
    maps.colours[0, colour, y, x] = 1.0


def test_a_peak_becomes_an_object_with_its_class_colour_and_box() -> None:
    maps = empty()
    put(maps, 3, 4, "dog", 1)
    (found,) = decode(maps, CLASSES, COLOURS, 0.3)
    assert [(each.name, each.colour, each.natural) for each in found] == [("dog", "blue", False)]
    assert found[0].box == pytest.approx((30 - 8, 36 - 12, 30 + 8, 36 + 12))
    assert found[0].score == pytest.approx(1 / (1 + math.exp(-4)), abs=1e-6)


def test_the_last_colour_tells_of_its_own_ones_and_boxes_stay_in_the_image() -> None:
    maps = empty()
    put(maps, 0, 7, "cup", 2)
    maps.colours[0, 1, 7, 0] = 0.5
    (found,) = decode(maps, CLASSES, COLOURS, 0.3)
    assert (found[0].colour, found[0].natural) == ("blue", True)
    assert found[0].box == pytest.approx((0, 48, 14, 64))


def test_a_neighbour_of_a_peak_is_none_and_two_cells_away_is_one() -> None:
    maps = empty()
    put(maps, 2, 2, "cat", 0, 4.0)
    put(maps, 3, 3, "cat", 0, 3.0)
    put(maps, 5, 3, "dog", 0, 2.0)
    (found,) = decode(maps, CLASSES, COLOURS, 0.3)
    assert [each.name for each in found] == ["cat", "dog"]


def test_of_equal_neighbours_the_first_is_the_peak() -> None:
    maps = empty()
    for x in (2, 3, 4):
        put(maps, x, 2, "cat", 0)
    assert len(decode(maps, CLASSES, COLOURS, 0.3)[0]) == 1


def test_score_is_objectness_times_class_probability_and_best_come_first() -> None:
    maps = empty()
    put(maps, 1, 1, "cat", 0, 0.0)
    put(maps, 5, 5, "dog", 0, 8.0)
    maps.classes[0, :, 5, 5] = torch.tensor([0.0, 1.0, 0.0])
    certain = math.e / (math.e + 2) / (1 + math.exp(-8))
    (found,) = decode(maps, CLASSES, COLOURS, 0.3)
    assert [each.score for each in found] == pytest.approx([certain, 0.5], abs=1e-5)
    assert [each.name for each in decode(maps, CLASSES, COLOURS, 0.55)[0]] == ["dog"]
    assert decode(maps, CLASSES, COLOURS, 0.6)[0] == []


def tiny() -> Detector:
    torch.manual_seed(0)
    return Detector(DetectorConfig(CLASSES, COLOURS, widths=(8, 8, 8), num_blocks=1, threshold=0.0)).eval()


def test_images_do_not_depend_on_their_neighbours_and_files_keep_everything(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = tiny()
    together, alone = network.detect(images), [network.detect(image[None])[0] for image in images]
    assert [len(each) for each in together] == [len(each) for each in alone]
    for a, b in zip(together, alone, strict=True):
        assert [(one.name, one.colour) for one in a] == [(one.name, one.colour) for one in b]
        assert [one.score for one in a] == pytest.approx([one.score for one in b], abs=1e-5)
    network.save(tmp_path)
    loaded = Detector.load(tmp_path)
    assert loaded.config == network.config
    assert loaded.detect(images) == together


def test_what_it_cannot_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="knows 64 x 64"):
        tiny().detect(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(InputError, match="at least one class"):
        Detector(DetectorConfig())
    with pytest.raises(InputError, match=r"detector .*holds no config.json"):
        Detector.load(tmp_path)
    tiny().save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="damaged"):
        Detector.load(tmp_path)
