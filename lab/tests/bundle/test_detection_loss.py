"""The detector's loss: targets by hand, zero for perfect maps, and gradients where they belong."""

import math

import pytest
import torch

from channelvq.nn.detector import DetectorMaps, decode
from lab.bundle.detection_loss import NEAR, NOTHING, SIGMA, UNSAID, detection_loss, detection_targets

BOXES = torch.tensor([[[8.0, 16, 24, 40], [40, 40, 60, 60], [0, 0, 0, 0]]])
CLASSES, COLOURS = torch.tensor([[1, 0, -1]]), torch.tensor([[2, 0, -1]])


def test_the_bump_is_one_in_the_cell_of_the_centre_and_falls_off() -> None:
    targets = detection_targets(BOXES, CLASSES, (8, 8))
    # Centres (16, 28) and (50, 50): cells (2, 3) and (6, 6).
    assert targets.centre[0].nonzero().tolist() == [[3, 2], [6, 6]]
    assert float(targets.heat[0, 3, 3]) == pytest.approx(math.exp(-1 / (2 * SIGMA**2)))
    assert targets.boxes[0, :, 3, 2].tolist() == pytest.approx([-0.5, 0.0, math.log(2), math.log(3)])
    assert targets.boxes[0, :, 3, 1].tolist() == pytest.approx([0.5, 0.0, math.log(2), math.log(3)])
    assert targets.owner[0, 6, 5] == 1
    assert float(targets.weight[0, 0, 0]) == 0
    assert bool(((targets.weight > NEAR) | (targets.weight == 0)).all())


def perfect() -> DetectorMaps:
    targets = detection_targets(BOXES, CLASSES, (8, 8))

    def sure(labels: torch.Tensor, count: int) -> torch.Tensor:
        owned = labels.clamp(min=0)[0][targets.owner[0]]
        return 40.0 * torch.nn.functional.one_hot(owned, count).permute(2, 0, 1)[None].float()

    objectness = torch.where(targets.centre > 0, 40.0, -40.0)
    return DetectorMaps(objectness, targets.boxes.clone(), sure(CLASSES, 2), sure(COLOURS, 3))


def test_perfect_maps_cost_nothing_and_decode_to_the_truth() -> None:
    assert sum(float(term) for term in detection_loss(perfect(), BOXES, CLASSES, COLOURS).values()) < 1e-6
    (found,) = decode(perfect(), ("cat", "dog"), ("red", "blue"), 0.5)
    by_name = {each.name: each for each in found}
    assert by_name["dog"].box == pytest.approx((8, 16, 24, 40), abs=1e-4)
    assert by_name["cat"].box == pytest.approx((40, 40, 60, 60), abs=1e-4)
    assert by_name["dog"].natural
    assert (by_name["cat"].colour, by_name["cat"].natural) == ("red", False)


@pytest.mark.parametrize("part", ["objectness", "boxes", "classes", "colours"])
def test_each_term_pulls_on_its_own_map_only(part: str) -> None:
    maps = DetectorMaps(
        *(torch.zeros(1, *shape, requires_grad=True) for shape in ((8, 8), (4, 8, 8), (2, 8, 8), (3, 8, 8)))
    )
    name = {"boxes": "box", "classes": "class", "colours": "colour"}.get(part, part)
    detection_loss(maps, BOXES, CLASSES, COLOURS)[name].backward()
    moved = {key for key in ("objectness", "boxes", "classes", "colours") if getattr(maps, key).grad is not None}
    assert moved == {part}
    gradient = getattr(maps, part).grad
    if part != "objectness":
        assert float(gradient[..., 0, 7].abs().sum()) == 0  # far from every centre nothing is learned
        assert float(gradient[..., 3, 2].abs().sum()) > 0


def test_what_is_unsaid_is_not_learned_but_the_thing_is_there() -> None:
    maps = DetectorMaps(torch.zeros(1, 8, 8), *(torch.randn(1, n, 8, 8, requires_grad=True) for n in (4, 2, 3)))
    classes, colours = torch.tensor([[UNSAID, 0, NOTHING]]), torch.tensor([[2, UNSAID, NOTHING]])
    terms = detection_loss(maps, BOXES, classes, colours)
    (terms["box"] + terms["class"] + terms["colour"]).backward()
    first, second = (..., 3, 2), (..., 6, 6)
    for name, here in (("boxes", (first, second)), ("classes", (second,)), ("colours", (first,))):
        gradient = getattr(maps, name).grad
        for place in (first, second):
            assert (float(gradient[place].abs().sum()) > 0) == (place in here), (name, place)
    all_said = detection_loss(maps, BOXES, CLASSES, COLOURS)
    assert float(terms["objectness"]) == float(all_said["objectness"])


def test_an_image_without_objects_wants_an_empty_map() -> None:
    nothing = torch.full((1, 3), NOTHING)
    maps = DetectorMaps(torch.zeros(1, 8, 8), *(torch.randn(1, n, 8, 8) for n in (4, 2, 3)))
    terms = detection_loss(maps, torch.zeros(1, 3, 4), nothing, nothing)
    assert float(terms["objectness"]) > 0
    assert [float(terms[name]) for name in ("box", "class", "colour")] == [0, 0, 0]
