"""A small anchor-free detector: what is in an image, where, and in which colour (after CenterNet, Zhou et al. 2019).

    x (B, 3, H, W) in [-1, 1] -> conv, halve, blocks -> ... -> (B, width, H/8, W/8) -> head -> maps
    peaks of the objectness map -> class, colour and box at each peak -> detections above a score

B images, K classes, Q colours ("its own colours" is none of them and comes last), h = H/8, w = W/8 cells.
"""

from dataclasses import dataclass as plain_dataclass
from itertools import chain
from typing import Annotated

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.config import STRICT, ImageSize
from channelvq.errors import InputError
from channelvq.images import normalize
from channelvq.nn.layers import Downsample, group_norm, levels
from channelvq.pretrained import SavedNetwork

STRIDE = 8  # pixels a cell
CHUNK_ROWS = 64  # images at a time
PRIOR = 0.02  # share of the cells that hold an object: where the objectness starts


@dataclass(frozen=True, config=STRICT)
class DetectorConfig:
    """classes, colours: their names, in the order of the maps. widths: channels at 1/2, 1/4 and 1/8 of the resolution.

    image_size: of the images that it knows. threshold: the least score of a detection, chosen on validation images.
    """

    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (32, 64, 128)
    num_blocks: PositiveInt = 2
    image_size: Annotated[ImageSize, Field(multiple_of=STRIDE)] = 64
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.3


@plain_dataclass(frozen=True)
class Detection:
    """An object. box: left, top, right, bottom in pixels. score: in [0, 1].

    colour: the likeliest of the detector's. natural: whether it is likelier still that the thing has its own colours.
    """

    name: str
    box: tuple[float, float, float, float]
    colour: str
    score: float
    natural: bool = False


@plain_dataclass(frozen=True, eq=False)
class DetectorMaps:
    """What the network says of every cell.

    objectness: logit of "an object has its centre here". boxes: offset of the centre from the cell's (x, y, in cells)
    and log of width and height (in cells). classes, colours: logits; the last colour is "its own colours".
    """

    objectness: Float[Tensor, "B h w"]
    boxes: Float[Tensor, "B 4 h w"]
    classes: Float[Tensor, "B K h w"]
    colours: Float[Tensor, "B Q h w"]


class Detector(SavedNetwork):
    """Maps of every image, and the detections in them."""

    what = bundled = "detector"
    settings = DetectorConfig
    config: DetectorConfig

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        if not config.classes or not config.colours:
            raise InputError("detector: it needs at least one class and one colour")
        self.config = config
        first, _, last = config.widths
        self.stem = nn.Conv2d(3, first, 3, stride=2, padding=1)
        self.stages = nn.Sequential(*chain(*levels(config.widths, config.num_blocks, Downsample)))
        self.norm = group_norm(last)
        self.neck = nn.Conv2d(last, 2 * last, 3, padding=1)
        self.sizes = (1, 4, len(config.classes), len(config.colours) + 1)
        self.head = nn.Conv2d(2 * last, sum(self.sizes), 1)
        nn.init.constant_(self.head.bias[:1], torch.tensor(PRIOR, device="cpu").logit().item())  # type: ignore[index]

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> DetectorMaps:
        """Maps of h x w cells; H and W must be multiples of 8."""
        h = F.silu(self.neck(F.silu(self.norm(self.stages(self.stem(x))))))
        objectness, boxes, classes, colours = self.head(h).float().split(self.sizes, dim=1)
        return DetectorMaps(objectness[:, 0], boxes, classes, colours)

    @torch.no_grad()
    def detect(self, images: UInt8[Tensor, "B 3 H W"], threshold: float | None = None) -> list[list[Detection]]:
        """The objects of each image, best score first. threshold: instead of the config's."""
        side = self.config.image_size
        if images.shape[-2:] != (side, side):
            raise InputError(f"detector: images of {tuple(images.shape[-2:])} pixels, it knows {side} x {side}")
        device, least = self.head.weight.device, self.config.threshold if threshold is None else threshold
        detections: list[list[Detection]] = []
        for part in images.split(CHUNK_ROWS):
            maps = self(normalize(part.to(device)))
            detections += decode(maps, self.config.classes, self.config.colours, least)
        return detections


def decode(
    maps: DetectorMaps, classes: tuple[str, ...], colours: tuple[str, ...], threshold: float
) -> list[list[Detection]]:
    """The detections of each image above `threshold`, best first.

    A cell is an object where its objectness is the greatest of the 3 x 3 cells around it (of equal ones the first).
    score: objectness times the probability of the likeliest class.
    """
    heat = maps.objectness.sigmoid()
    best = F.max_pool2d(heat[:, None], 3, stride=1, padding=1, return_indices=True)[1][:, 0]
    peaks = best == torch.arange(heat[0].numel(), device=heat.device).view(heat[0].shape)
    chance, which = maps.classes.softmax(1).max(1)
    scores, boxes = heat * chance, _pixels(maps.boxes)
    likeliest, of_its_own = maps.colours[:, :-1].max(1), maps.colours[:, -1]
    detections: list[list[Detection]] = [[] for _ in heat]
    for b, y, x in (peaks & (scores > threshold)).nonzero().tolist():
        name, colour = classes[int(which[b, y, x])], colours[int(likeliest.indices[b, y, x])]
        left, top, right, bottom = boxes[b, :, y, x].tolist()
        natural = bool(of_its_own[b, y, x] > likeliest.values[b, y, x])
        box, score = (left, top, right, bottom), float(scores[b, y, x])
        detections[b].append(Detection(name, box, colour, score, natural))
    return [sorted(objects, key=lambda detection: -detection.score) for objects in detections]


def _pixels(boxes: Float[Tensor, "B 4 h w"]) -> Float[Tensor, "B 4 h w"]:
    """Left, top, right, bottom in pixels, within the image."""
    h, w = boxes.shape[-2:]
    ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    cells = torch.stack([xs, ys]).to(boxes) + 0.5
    centre, half = cells + boxes[:, :2], boxes[:, 2:].exp() / 2
    limits = torch.tensor([w, h], device=boxes.device).view(1, 2, 1, 1)
    low, high = (centre - half).clamp(min=0), torch.minimum(centre + half, limits)
    return torch.cat([low, high], dim=1) * STRIDE
