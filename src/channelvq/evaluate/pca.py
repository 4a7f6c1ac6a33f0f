"""PCA as an image codec: what linear transform coding, fitted on training images, buys with the bytes of the tokens."""

import heapq
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from channelvq.byte_rows import with_byte_rows, without_byte_rows
from channelvq.checks import check_whole_number
from channelvq.errors import InputError
from channelvq.evaluate.metrics import check_images
from channelvq.images import normalize, to_uint8
from channelvq.pretrained import write_weights
from channelvq.principal import directions, signed

PROTOCOL = (
    "principal components of training images in [-1, 1]; uniform quantizers over ranges fitted on the training images; "
    "bits by reverse water-filling over the training distortions; exactly the byte budget, no side information"
)
_FORMAT = "channelvq-pca-1"
_MAX_BITS = 10
_RANGES = torch.arange(0.5, 8.01, 0.25)  # half-ranges to try, in standard deviations
_ROWS = 256


@dataclass(frozen=True, eq=False)
class PCABaseline:
    """Images as quantized coefficients on K principal components, d = 3 * height * width numbers an image.

    mean (d,) and basis (K, d) are of images in [-1, 1]. half_ranges[i, b]: the quantizer of component i with b bits
    has 2**b equal cells over [-half_range, half_range], clips beyond, and decodes to cell centres; no bits decode to 0.
    distortion[i, b]: its mean squared error on the training images, which decides who gets the bits.
    """

    height: int
    width: int
    mean: Float32[Tensor, " d"]
    basis: Float[Tensor, "K d"]
    half_ranges: Float32[Tensor, "K b"]
    distortion: Float32[Tensor, "K b"]

    @classmethod
    def fit(cls, images: UInt8[Tensor, "n 3 h w"], num_components: int = 192) -> "PCABaseline":
        """Fit on a few thousand training images; no randomness in it (eigenvectors of the n x n Gram matrix).

        192 components of 64 px take 2.4 MB in a file. Measured on held-out crops of four photos seen in training, 300
        gain 0.07 dB at 96 bytes and 1.1 dB at 192. Raises InputError for no images or ones without variance.
        """
        check_images(images)
        num_components = check_whole_number("num_components", num_components, 1)
        x = normalize(images).flatten(1)
        mean = x.mean(dim=0)
        basis = _as_stored(_principal_axes(x.sub_(mean), num_components))
        coefficients = torch.cat([_project(rows, basis) for rows in x.split(_ROWS)])
        half_ranges, distortion = _fit_quantizers(coefficients)
        height, width = images.shape[-2:]
        return cls(height, width, mean, basis, half_ranges, distortion)

    def allocate(self, num_bytes: int) -> Int64[Tensor, " K"]:
        """Bits of each component, 8 * num_bytes in all (fewer once every component has 10).

        Each bit goes where it lowers the training distortion most: reverse water-filling in whole bits (Cover and
        Thomas, 10.3.3). Raises InputError for fewer than one byte.
        """
        check_budget(num_bytes)
        gains = (self.distortion[:, :-1] - self.distortion[:, 1:]).double().tolist()
        bits = [0] * len(gains)
        queue = [(-gain[0], component) for component, gain in enumerate(gains)]
        heapq.heapify(queue)
        for _ in range(8 * num_bytes):
            if not queue:
                break
            _, component = heapq.heappop(queue)
            bits[component] += 1
            if bits[component] < _MAX_BITS:
                heapq.heappush(queue, (-gains[component][bits[component]], component))
        return torch.tensor(bits)

    def encode(self, images: UInt8[Tensor, "n 3 h w"], num_bytes: int) -> Int64[Tensor, "n K"]:
        """Cell of each component, 0..2**bits - 1; raises InputError for images of another size than the fitted."""
        check_images(images)
        if images.shape[-2:] != (self.height, self.width):
            raise InputError(
                f"PCA was fitted on images of {self.height} x {self.width}, got {images.shape[-2]} x {images.shape[-1]}"
            )
        bits = self.allocate(num_bytes)
        half = _at(self.half_ranges, bits)
        parts = [_project(normalize(part).flatten(1) - self.mean, self.basis) for part in images.split(_ROWS)]
        return _to_cells(torch.cat(parts), half, bits)

    def decode(self, cells: Int64[Tensor, "n K"], num_bytes: int) -> UInt8[Tensor, "n 3 h w"]:
        """Images of the cells that `encode` gave for the same num_bytes."""
        bits = self.allocate(num_bytes)
        coefficients = _from_cells(cells, _at(self.half_ranges, bits), bits)
        basis = self.basis.double()
        parts = [to_uint8(self._image(part @ basis)) for part in coefficients.split(_ROWS)]
        return torch.cat(parts)

    def reconstruct(self, images: UInt8[Tensor, "n 3 h w"], num_bytes: int) -> UInt8[Tensor, "n 3 h w"]:
        """The images after a round trip through num_bytes bytes each."""
        return self.decode(self.encode(images, num_bytes), num_bytes)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file; raises OSError or SafetensorError where it cannot be written."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        metadata = {"format": _FORMAT, "height": str(self.height), "width": str(self.width)}
        write_weights(Path(path), with_byte_rows(tensors, {"basis"}), metadata)

    @classmethod
    def load(cls, path: str | Path) -> "PCABaseline":
        """Read what `save` wrote, or "bundled": of 64 px images of the bundled tokenizer's training data.

        Raises InputError for a file that is missing or something else.
        """
        if path == "bundled":
            with resources.as_file(resources.files("channelvq") / "bundled" / "pca.safetensors") as bundled:
                return cls.load(bundled)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read as a PCA baseline: {error}") from None
        if metadata.get("format") != _FORMAT:
            raise InputError(
                f"{path}: expected a file of PCABaseline.save ({_FORMAT}), got {metadata or 'no metadata'}"
            )
        try:
            tensors = without_byte_rows(stored)
            size = 3 * int(metadata["height"]) * int(metadata["width"])
            if tensors["mean"].shape != (size,) or not all(bool(value.isfinite().all()) for value in tensors.values()):
                raise ValueError("its numbers are not those of its size, or not finite")
            return cls(height=int(metadata["height"]), width=int(metadata["width"]), **tensors)
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: the PCA baseline is damaged ({error}); fit and save it again") from None

    def _image(self, x: Float64[Tensor, "n d"]) -> Float[Tensor, "n 3 h w"]:
        return (x + self.mean).clamp(-1.0, 1.0).unflatten(1, (3, self.height, self.width))


def _as_stored(basis: Float[Tensor, "K d"]) -> Float32[Tensor, "K d"]:
    """The basis with the precision that `save` keeps: the quantizers are fitted to what will be read."""
    return without_byte_rows(with_byte_rows({"basis": basis}, {"basis"}))["basis"]


def check_budget(num_bytes: int) -> None:
    """Raise InputError for fewer than one byte."""
    check_whole_number("num_bytes", num_bytes, 1)


def _principal_axes(x: Float32[Tensor, "n d"], num_components: int) -> Float[Tensor, "K d"]:
    """Orthonormal rows, largest variance first, of centred x; fewer than asked where x has no more directions."""
    gram = (x @ x.T).double() if len(x) <= x.shape[1] else (x.T @ x).double()
    values, vectors = directions(gram)
    # Rounding leaves about 1e-7 of the largest eigenvalue in directions without variance.
    rank = int((values > 1e-6 * values[0].clamp(min=1e-12)).sum())
    if not rank:
        raise InputError("PCA: the images are all the same; give it a few thousand different ones")
    top = vectors[:, : min(num_components, rank)].T
    axes = top @ x.double() if len(x) <= x.shape[1] else top
    return signed(axes / axes.norm(dim=1, keepdim=True), 1)


def _project(rows: Float[Tensor, "n d"], basis: Float[Tensor, "K d"]) -> Float64[Tensor, "n K"]:
    # In float64 a coefficient does not change cell with the number of rows it is computed among.
    return rows.double() @ basis.double().T


def _fit_quantizers(coefficients: Float64[Tensor, "n K"]) -> tuple[Float32[Tensor, "K b"], Float32[Tensor, "K b"]]:
    """Half-range of least squared error for each component and 0..10 bits, and that error."""
    x = coefficients.float()
    spread = x.std(dim=0, correction=0)
    ranges, errors = [torch.zeros_like(spread)], [x.square().mean(dim=0)]
    for num_bits in range(1, _MAX_BITS + 1):
        bits = torch.full(spread.shape, num_bits)
        trials = _RANGES[:, None] * spread
        costs = torch.stack(
            [(_from_cells(_to_cells(x, half, bits), half, bits) - x).square_().mean(0) for half in trials]
        )
        best = costs.argmin(dim=0, keepdim=True)
        ranges.append(trials.gather(0, best)[0])
        errors.append(costs.gather(0, best)[0])
    return torch.stack(ranges, dim=1), torch.stack(errors, dim=1)


def _at(table: Float32[Tensor, "K b"], bits: Int64[Tensor, " K"]) -> Float64[Tensor, " K"]:
    return table.gather(1, bits[:, None])[:, 0].double()


def _to_cells(x: Float[Tensor, "n K"], half: Float[Tensor, " K"], bits: Int64[Tensor, " K"]) -> Int64[Tensor, "n K"]:
    cells = 2**bits
    position = (x + half) * (cells / (2 * half).clamp(min=1e-12))
    return position.floor().long().clamp(min=torch.zeros_like(cells), max=cells - 1)


def _from_cells(
    cells: Int64[Tensor, "n K"], half: Float[Tensor, " K"], bits: Int64[Tensor, " K"]
) -> Float[Tensor, "n K"]:
    return (cells + 0.5) * (2 * half / 2**bits) - half
