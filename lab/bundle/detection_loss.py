"""The loss of the detector: where the centres are, and class, colour and box around them.

b images, M places for objects (class NOTHING where there is none), K classes, Q colours, h x w cells of 8 pixels. A
class or colour UNSAID is not learned.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from channelvq.nn.detector import STRIDE, DetectorMaps

NOTHING, UNSAID = -1, -2
SIGMA = 0.7  # of the bump that marks a centre, in cells
NEAR = 0.2  # class, colour and box are learned where the bump is higher: the cell of the centre and those beside it
ALPHA, BETA = 2, 4  # exponents of CenterNet's focal loss
BOX_WEIGHT = 0.5


@dataclass(frozen=True, eq=False)
class DetectionTargets:
    """What the maps should say. owner: the object, by its place, that a cell is nearest to. weight: 0 far from all."""

    heat: Float[Tensor, "b h w"]
    centre: Float[Tensor, "b h w"]
    owner: Int[Tensor, "b h w"]
    weight: Float[Tensor, "b h w"]
    boxes: Float[Tensor, "b 4 h w"]


def detection_targets(
    boxes: Float[Tensor, "b M 4"], classes: Int[Tensor, "b M"], cells: tuple[int, int]
) -> DetectionTargets:
    """boxes: left, top, right, bottom in pixels. heat: a bump at each centre, 1 in the cell that holds it."""
    h, w = cells
    ys, xs = torch.meshgrid(*(torch.arange(n, device=boxes.device) + 0.5 for n in cells), indexing="ij")
    low, high = boxes.unflatten(-1, (2, 2)).div(STRIDE).unbind(2)
    centre, extent = (low + high) / 2, (high - low).clamp(min=1 / STRIDE)
    offset = centre[..., None, None] - torch.stack([xs, ys])  # (b, M, 2, h, w)
    middle = centre.floor().clamp(max=torch.tensor([w, h], device=boxes.device) - 1) + 0.5
    steps = middle[..., None, None] - torch.stack([xs, ys])
    bumps = torch.exp(-steps.square().sum(2) / (2 * SIGMA**2)) * (classes != NOTHING)[..., None, None]
    heat, owner = bumps.max(1)
    chosen = owner[:, None, None].expand(-1, 1, 2, -1, -1)
    sizes = extent.log()[..., None, None].expand_as(offset)
    target = torch.cat([values.gather(1, chosen)[:, 0] for values in (offset, sizes)], dim=1)
    return DetectionTargets(heat, (heat == 1).float(), owner, heat * (heat > NEAR), target)


def detection_loss(
    maps: DetectorMaps, boxes: Float[Tensor, "b M 4"], classes: Int[Tensor, "b M"], colours: Int[Tensor, "b M"]
) -> dict[str, Float[Tensor, ""]]:
    """Objectness (CenterNet's focal loss, eq. 1 of Zhou et al. 2019), box (L1), class and colour (cross-entropy)."""
    h, w = maps.objectness.shape[1:]
    targets = detection_targets(boxes, classes, (h, w))
    count = targets.centre.sum().clamp(min=1)

    def named(logits: Float[Tensor, "b n h w"], labels: Int[Tensor, "b M"]) -> Float[Tensor, ""]:
        owned = labels.gather(1, targets.owner.flatten(1)).view(targets.owner.shape)
        nats = F.cross_entropy(logits, owned.clamp(min=0), reduction="none")
        return _mean(nats, targets.weight * (owned >= 0))

    return {
        "objectness": _focal(maps.objectness, targets).sum() / count,
        "box": BOX_WEIGHT * _mean((maps.boxes - targets.boxes).abs().sum(1), targets.weight),
        "class": named(maps.classes, classes),
        "colour": named(maps.colours, colours),
    }


def _mean(values: Float[Tensor, "b h w"], weight: Float[Tensor, "b h w"]) -> Float[Tensor, ""]:
    return (values * weight).sum() / weight.sum().clamp(min=1)


def _focal(logits: Float[Tensor, "b h w"], targets: DetectionTargets) -> Float[Tensor, "b h w"]:
    p = logits.sigmoid()
    present = -((1 - p) ** ALPHA) * F.logsigmoid(logits)
    absent = -((1 - targets.heat) ** BETA) * p**ALPHA * F.logsigmoid(-logits)
    return torch.where(targets.centre > 0, present, absent)
