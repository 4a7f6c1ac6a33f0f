"""The test images of every small-scale study: labels, photographs and sources that no recipe trains on."""

from typing import Any

from jaxtyping import UInt8
from torch import Tensor, nn

from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.drawn.scenes import SceneConfig
from channelvq.data.fetched.domains import DOMAINS, DomainConfig
from channelvq.data.fetched.emoji import EmojiConfig
from channelvq.data.fetched.photos import PhotoConfig
from channelvq.data.stream import fixed_images
from channelvq.evaluate.results import protocol

EMOJI = DataConfig(sources={style: EmojiConfig(style=style) for style in ("fluent", "noto", "twemoji")})
PHOTOS = DataConfig(sources={"photos": PhotoConfig()})
SCENES = DataConfig(sources={"scenes": SceneConfig()})
KINDS = {"emoji": EMOJI, "photos": PHOTOS, "scenes": SCENES}  # what the bundled tokenizer was trained for
OTHERS = {name: DataConfig(sources={name: DomainConfig(name=name)}) for name in DOMAINS}

DESCRIPTIONS = {
    "emoji": "three art sets in equal parts, labels of the test split, on random backgrounds",
    "photos": "random squares of at least 256 px of the test photographs, astronaut, chelsea and coffee among them",
    "scenes": "scenes drawn by channelvq.data.drawn.scenes, test split",
    "textures": "random squares of at least 128 px of game textures, art sets of the test split",
    "astronomy": "random squares of at least 256 px of nebulae, clusters and galaxies of the test split",
    "drawings": "random squares of at least 256 px of clip art on white, motifs of the test split",
    "histology": "random squares of at least 64 px of one immunohistochemical stain",
    "retina": "random squares of at least 256 px of one fundus photograph, which small/bundled trains on",
}


def held_out(name: str, count: int, size: int = 64) -> UInt8[Tensor, "n 3 h w"]:
    """`count` images of the test split of a kind (those of DESCRIPTIONS), always the same ones."""
    return fixed_images(build_mixture({**KINDS, **OTHERS}[name], size, "test", seed=0), count)


def held_out_protocol(name: str, images: UInt8[Tensor, "n 3 h w"], tokenizer: nn.Module) -> dict[str, Any]:
    """How a tokenizer is measured on images of `held_out`."""
    return protocol(
        images,
        data=f"{name}: {DESCRIPTIONS[name]}",
        split="test",
        resize="antialiased",
        crop="see data",
        tokenizer=tokenizer,
    )
