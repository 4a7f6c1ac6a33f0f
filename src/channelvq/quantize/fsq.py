"""Finite scalar quantization: d numbers, each rounded to one of L_i levels.

u = project_in(z);  f(u)_i = (L_i - 1)/2 tanh(u_i);  rounded, the gradient passes straight through the rounding
N = prod L_i, no codebook, no auxiliary loss     (Mentzer et al. 2023, arXiv 2309.15505, section 3)
"""

from math import prod
from typing import Annotated, Literal

from jaxtyping import Bool, Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from channelvq.config import STRICT, ScalarCodebookSize
from channelvq.quantize.quantized import Quantized, straight_through
from channelvq.quantize.scalar import ScalarCodebook, peers

# The standard deviation at which tanh spreads normally distributed numbers about evenly over the levels.
EVEN = 0.8


@dataclass(frozen=True, config=STRICT)
class FSQConfig:
    """levels: L_i, whose product is codebook_size. None: levels of 8 and, where it must be, of 4 or 16.

    The paper advises L_i >= 5; its own sets are 8,6,5 (240 codes), 8,5,5,5 (1,000), 7,5,5,5,5 (4,375), 8,8,8,6,5
    (15,360) and 8,8,8,5,5,5 (64,000).
    """

    kind: Literal["fsq"] = "fsq"
    codebook_size: ScalarCodebookSize = 4096
    levels: Annotated[tuple[Annotated[int, Field(ge=3)], ...], Field(min_length=1)] | None = None

    def __post_init__(self) -> None:
        if self.levels is None and (self.codebook_size < 4 or self.codebook_size & (self.codebook_size - 1)):
            raise ValueError(
                f"without levels, codebook_size must be a power of two of at least 4, got {self.codebook_size}; "
                "give levels too, such as codebook_size=1000 levels=[8,5,5,5]"
            )
        if self.levels is not None and prod(self.levels) != self.codebook_size:
            raise ValueError(
                f"codebook_size must be the product of the levels {list(self.levels)}, {prod(self.levels)}, "
                f"got {self.codebook_size}"
            )

    @property
    def chosen_levels(self) -> tuple[int, ...]:
        """The levels given, or those that codebook_size stands for."""
        if self.levels is not None:
            return self.levels
        bits = self.codebook_size.bit_length() - 1
        sixteens = 0 if bits in (2, 5) else bits % 3
        rest = bits - 4 * sixteens
        return (16,) * sixteens + (8,) * (rest // 3) + (4,) * (rest % 3 == 2)

    def build(self, dim: int, num_tokens: int | None = None) -> "FSQCodebook":
        """The quantizer, for tokens of `dim` numbers."""
        return FSQCodebook(self, dim)


class FSQCodebook(ScalarCodebook):
    """N = prod L_i codes, the grid of all levels projected to D numbers."""

    def __init__(self, config: FSQConfig, dim: int) -> None:
        levels = list(config.chosen_levels)
        super().__init__(lambda: peers().FSQ(levels), config.codebook_size, len(levels), dim, scale=EVEN)
        self.config = config

    def _round(self, u: Float[Tensor, "B K d"]) -> tuple[Float[Tensor, "B K d"], Int64[Tensor, "B K"]]:
        rounded, indices = self.library(u)
        indices = indices.long()
        return straight_through(rounded, self.grid[indices]), indices

    def _quantize(self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None) -> Quantized:
        points, indices = self._round(self._project_in(z))
        return Quantized(self._project_out(points), indices)
