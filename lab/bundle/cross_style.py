"""The cross-style test: find the same emoji of another art set among 400, by the nearest feature vector.

A feature network that sees what a picture shows, not how it is drawn, finds it. Queries are labels of one split; the
gallery is filled up with other labels, so that every network is asked the same.
"""

from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from channelvq.data.fetched.emoji import EmojiSource, Style
from channelvq.data.split import Split
from channelvq.errors import InputError
from channelvq.images import normalize

GALLERY = 400
STYLES: tuple[Style, ...] = ("fluent", "noto", "twemoji")
ORDER: dict[Split, tuple[Split, ...]] = {
    "test": ("test", "validation", "train"), "validation": ("validation", "train"), "train": ("train",),
}  # fmt: skip
Embed = Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B E"]]


def style_pictures(
    split: Split, size: int = 64, cache: Path | str | None = None
) -> tuple[dict[Style, UInt8[Tensor, "400 3 h w"]], int]:
    """The gallery of every art set in one order of labels, on white, and how many of its first are of `split`."""
    chosen: dict[Style, list[Tensor]] = {style: [] for style in STYLES}
    queries = 0
    for part in ORDER[split]:
        sources = [EmojiSource(style, size, part, "white", augment=False, cache=cache) for style in STYLES]
        places = [{sprite.base: i for i, sprite in enumerate(source.sprites)} for source in sources]
        common = sorted(set.intersection(*map(set, places)))
        for base in common[: GALLERY - len(chosen[STYLES[0]])]:
            for style, source, place in zip(STYLES, sources, places, strict=True):
                chosen[style].append(source.sample(place[base], torch.Generator()).image)
        queries = queries or len(chosen[STYLES[0]])
    if len(chosen[STYLES[0]]) < GALLERY:
        raise InputError(f"cross-style test: only {len(chosen[STYLES[0]])} labels are in all art sets, need {GALLERY}")
    return {style: torch.stack(pictures) for style, pictures in chosen.items()}, queries


@torch.no_grad()
def cross_style_accuracy(
    embed: Embed, pictures: Mapping[Style, UInt8[Tensor, "n 3 h w"]], queries: int
) -> dict[str, float]:
    """Share of the first `queries` labels found in another art set, by "from to" of the art sets, and their mean."""
    vectors = {
        style: F.normalize(torch.cat([embed(normalize(part)) for part in images.split(64)]).float(), dim=1)
        for style, images in pictures.items()
    }
    truth = torch.arange(queries)
    accuracy = {
        f"{a} {b}": float(((vectors[a][:queries] @ vectors[b].T).argmax(1).cpu() == truth).float().mean())
        for a, b in permutations(vectors, 2)
    }
    return accuracy | {"mean": sum(accuracy.values()) / len(accuracy)}


def pixels_16(x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
    """The baseline that needs no network: the picture itself at 16 x 16, less its mean."""
    small = F.interpolate(x, (16, 16), mode="area").flatten(1)
    return small - small.mean(1, keepdim=True)
