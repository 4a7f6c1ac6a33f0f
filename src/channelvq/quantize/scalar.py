"""Quantizers without a learned codebook: a few numbers of a token are rounded each for itself.

z (B, K, D) -> project_in -> u (B, K, d) -> rounded to a grid of N points -> project_out -> z_q (B, K, D)

The rounding is the library vector-quantize-pytorch's (extra `peers`). The projections, their start from data and the
equality of forward pass and table are ours.
"""

from abc import abstractmethod
from collections.abc import Callable
from types import ModuleType

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.errors import InputError
from channelvq.principal import directions
from channelvq.quantize.base import Quantizer, check_finite


def peers() -> ModuleType:
    """The library vector-quantize-pytorch; raises InputError that names the extra where it is not installed."""
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise InputError(
            f"the quantizers fsq and lfq need the library vector-quantize-pytorch ({error}): "
            "install the extra with pip install 'channelvq[peers]', or choose another model.quantizer.kind"
        ) from None
    return vector_quantize_pytorch


class ScalarCodebook(Quantizer):
    """Linear projections around a fixed grid (N, d); `codes` is the projected grid, so it has the rank d + 1.

    build: makes the library's module. start_scale: the standard deviation of each number of u after a start from data.
    """

    grid: Tensor

    def __init__(self, build: Callable[[], nn.Module], codebook_size: int, digits: int, dim: int, scale: float) -> None:
        super().__init__(codebook_size, dim, started=False)
        if dim < digits:
            raise InputError(
                f"quantizer: {codebook_size:,} codes take {digits} rounded numbers, a token has only {dim}; "
                "choose fewer codes, larger codewords or another model.quantizer.kind"
            )
        self.start_scale = scale
        with torch.device("cpu"):  # the library counts its codes, which a model on the meta device could not
            self.library = build()
            grid = self.library.indices_to_codes(torch.arange(codebook_size)).float()  # type: ignore[operator]
        for name, buffer in list(self.library.named_buffers(recurse=False)):
            # Constants: files hold what was learned, whatever the library's version keeps beside it.
            self.library.register_buffer(name, buffer, persistent=False)
        self.register_buffer("grid", grid, persistent=False)
        generator = torch.Generator("cpu").manual_seed(0)
        self.in_weight = nn.Parameter(torch.randn(digits, dim, device="cpu", generator=generator) * dim**-0.5)
        self.in_bias = nn.Parameter(torch.zeros(digits))
        self.out_weight = nn.Parameter(self.in_weight.detach().T.clone())
        self.out_bias = nn.Parameter(torch.zeros(dim))

    @abstractmethod
    def _round(self, u: Float[Tensor, "B K d"]) -> tuple[Float[Tensor, "B K d"], Int64[Tensor, "B K"]]:
        """Grid points to the bit, with the gradient that goes on to u, and their indices."""

    def codes(self) -> Float[Tensor, "N D"]:
        """The table that indices refer to."""
        return self._project_out(self.grid)

    def indices_to_codes(self, indices: Int64[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        """Codewords by index; equal to the bit to what the forward pass used."""
        return self._project_out(F.embedding(indices, self.grid))

    def _project_in(self, z: Float[Tensor, "... D"]) -> Float[Tensor, "... d"]:
        u = F.linear(z, self.in_weight.float(), self.in_bias.float())
        check_finite(u)  # the weights may have diverged
        return u

    def _project_out(self, points: Float[Tensor, "... d"]) -> Float[Tensor, "... D"]:
        """W v + b, number by number: a matrix product would give a row other bits in another batch."""
        out = self.out_bias
        for digit in range(points.shape[-1]):
            out = out + points[..., digit : digit + 1] * self.out_weight[:, digit]
        return out

    def _place(self, vectors: Float[Tensor, "M D"], generator: torch.Generator) -> None:
        """Start u as the principal components, all at the same scale; the way back by least squares."""
        x = vectors.double()
        mean = x.mean(0)
        variances, axes = directions((x - mean).T @ (x - mean) / len(x))
        variances, axes = variances[: len(self.in_bias)], axes[:, : len(self.in_bias)]
        floor = max(1e-6 * float(variances[0]), 1e-12)
        self.in_weight.copy_(self.start_scale * (axes / variances.clamp(min=floor).sqrt()).T)
        self.in_bias.copy_(-self.in_weight.double() @ mean)
        points = self.grid[self._round(self._project_in(vectors)[None])[1][0]].double()
        columns = torch.cat([points, torch.ones_like(points[:, :1])], dim=1)
        normal = columns.T @ columns / len(x)
        normal.diagonal().add_(1e-6)  # a digit that never changes has no slope of its own
        solution = torch.linalg.solve(normal, columns.T @ x / len(x))
        self.out_weight.copy_(solution[:-1].T)
        self.out_bias.copy_(solution[-1])
