"""What a generator gives."""

from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from channelvq.tokenizer import CVQTokenizer


@dataclass(frozen=True, eq=False)
class Generation:
    """Images as ids. ids: (B, k) in 0..N-1. seeds: of each image. images: decoded when first asked for.

    size: (height, width) of the images, or a side; None: the tokenizer's home size.
    """

    ids: Int64[Tensor, "B k"]
    seeds: tuple[int, ...]
    tokenizer: CVQTokenizer = field(repr=False)
    size: int | tuple[int, int] | None = None

    @cached_property
    def images(self) -> list[Image.Image]:
        """The images of the k tokens there are, as PIL."""
        return self.tokenizer.detokenize(self.ids, size=self.size)
