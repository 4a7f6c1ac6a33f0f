"""A tokenizer of one size, measured at another one."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from channelvq.images import normalize, to_uint8
from channelvq.tokenizer import CVQTokenizer


@dataclass(frozen=True)
class Resized:
    """Pictures of `size` through a tokenizer of another size: resized to its own before it, and back after it.

    By bicubic interpolation with antialiasing, rounded to uint8 between, as one would by hand. size: (height, width).
    """

    tokenizer: CVQTokenizer
    size: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        """C."""
        return self.tokenizer.num_tokens

    @property
    def codebook_size(self) -> int:
        """N."""
        return self.tokenizer.codebook_size

    @property
    def image_size(self) -> int:
        """The longer side of the pictures."""
        return max(self.size)

    def tokenize(self, images: Float[Tensor, "B 3 H W"]) -> Int64[Tensor, "B C"]:
        """(B, 3, H, W) in [-1, 1] -> ids."""
        home = (self.tokenizer.image_size, self.tokenizer.image_size)
        return self.tokenizer.tokenize(normalize(to_uint8(F.interpolate(images, home, mode="bicubic", antialias=True))))

    def detokenize(self, ids: Int64[Tensor, "B k"], output: Literal["tensor"] = "tensor") -> Float[Tensor, "B 3 H W"]:
        """Ids, k <= C -> pictures of `size` in [-1, 1]."""
        images = self.tokenizer.detokenize(ids, output)
        return F.interpolate(images, self.size, mode="bicubic", antialias=True).clamp(-1, 1)
