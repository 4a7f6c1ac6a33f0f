"""The test images of every small-scale study: labels and photographs that no recipe trains on."""

from typing import Any

from jaxtyping import UInt8
from torch import Tensor, nn

from channelvq.data.build import DataConfig, EmojiConfig, PhotoConfig, SceneConfig, build_mixture
from channelvq.data.stream import fixed_images
from channelvq.evaluate.report import protocol

EMOJI = DataConfig(sources={style: EmojiConfig(style=style) for style in ("fluent", "noto", "twemoji")})
PHOTOS = DataConfig(sources={"photos": PhotoConfig()})
SCENES = DataConfig(sources={"scenes": SceneConfig()})

DESCRIPTIONS = {
    "emoji": "three art sets in equal parts, labels of the test split, on random backgrounds",
    "photos": "random squares of at least 256 px of the test photographs, astronaut, chelsea and coffee among them",
    "scenes": "scenes drawn by channelvq.data.scenes, test split",
}


def held_out(name: str, count: int, size: int = 64) -> UInt8[Tensor, "n 3 h w"]:
    """`count` images of the test split of "emoji", "photos" or "scenes", always the same ones."""
    config = {"emoji": EMOJI, "photos": PHOTOS, "scenes": SCENES}[name]
    return fixed_images(build_mixture(config, size, "test", seed=0), count)


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
