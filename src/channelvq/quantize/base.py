"""What all quantizers share: tokens (B, K, D) in, `Quantized` out, and a table (N, D) that the indices refer to."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.distributed import broadcast_from_main, rank
from channelvq.errors import InputError, NotFiniteError
from channelvq.lookup.nearest import nearest_codeword
from channelvq.quantize.draw import Draw
from channelvq.quantize.quantized import Quantized


@dataclass(frozen=True)
class GlobalBatch:
    """What a quantizer knows of the global batch while it is given the batch in `parts` equal parts, one by one.

    table: the codewords that all parts are looked up in. tau: the temperature that all parts are taken at. total (N,),
    count, share: sum of the codes' probabilities over the kept tokens, their number, and their share of all tokens.
    """

    parts: int
    table: Tensor | None = None
    tau: Tensor | None = None
    total: Tensor | None = None
    count: Tensor | None = None
    share: Tensor | None = None


class Quantizer(nn.Module, ABC):
    """A quantizer of tokens of `dim` numbers into `codebook_size` codes.

    unit: only directions count: tokens are brought to length 1 first, and so are the codewords that it gives.

    A subclass gives the table (`codes`), what a start from data sets (`_place`) and the forward pass in float32
    (`_quantize`). It registers all of its state as parameters and buffers, so that it is saved, loaded and broadcast.
    """

    started: Tensor
    global_batch: GlobalBatch | None = None

    def __init__(self, codebook_size: int, dim: int, *, started: bool, unit: bool = False) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.dim = dim
        self.unit = unit
        # Part of the state: a loaded codebook must never be started again.
        self.register_buffer("started", torch.tensor(started))

    @abstractmethod
    def codes(self) -> Float[Tensor, "N D"]:
        """The table that indices refer to."""

    @abstractmethod
    def _place(self, vectors: Float[Tensor, "M D"], generator: torch.Generator) -> None:
        """Set parameters and buffers from data; runs on rank 0 alone."""

    @abstractmethod
    def _quantize(self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None) -> Quantized:
        """The forward pass; z is float32 and autocast is off."""

    @property
    def rowwise(self) -> bool:
        """Whether an image's indices are the same to the bit in a batch of any size, in evaluation.

        They are where tokens are compared as they were given, by an exact lookup; a product of all of the batch before
        would round a row by its neighbours.
        """
        return False

    @property
    def over_batch(self) -> bool:
        """Whether training depends on more of the batch than means over its tokens."""
        return False

    @torch.no_grad()
    def survey(
        self, vectors: Sequence[Float[Tensor, "b K D"]], keep: Sequence[Bool[Tensor, "b K"] | None], parts: int
    ) -> None:
        """Look at all of this rank's share of the global batch before its parts come one by one, for gradients.

        vectors, keep: of each part of this rank. parts: the number of all ranks' parts. Until `global_batch` is None
        again the quantizer updates nothing by itself, and does with a part what it would do with the global batch.
        """
        with torch.autocast(vectors[0].device.type, enabled=False):
            self.global_batch = self._survey([self.compared(z.float()) for z in vectors], keep, parts)

    def _survey(
        self, vectors: Sequence[Float[Tensor, "b K D"]], keep: Sequence[Bool[Tensor, "b K"] | None], parts: int
    ) -> GlobalBatch | None:
        return None

    def indices_to_codes(self, indices: Int64[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        """Codewords by index; equal to the bit to what the forward pass used."""
        return F.embedding(indices, self.codes())

    def targets(self, z: Float[Tensor, "B K D"], codes: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        """What each token was to stand for when it got its codeword: z, but where tokens pass on their errors."""
        return self.compared(z)

    def compared(self, vectors: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Vectors as they are compared: at length 1 where only directions count."""
        return F.normalize(vectors, dim=-1) if self.unit else vectors

    @torch.no_grad()
    def start_from(self, vectors: Float[Tensor, "M D"], generator: torch.Generator) -> None:
        """Start from the tokens of data: on rank 0, then broadcast, so that ranks agree.

        Raises NotFiniteError for NaN or infinity, which would stay in the codebook for good.
        """
        check_finite(vectors)
        if rank() == 0:
            with torch.autocast(vectors.device.type, enabled=False):
                self._place(self.compared(vectors.float()), generator)
        broadcast_from_main((*self.parameters(), *self.buffers()))
        self.started.fill_(True)

    def start_from_tokens(self, z: Float[Tensor, "B K D"], generator: torch.Generator) -> None:
        """`start_from` the tokens of whole images, for a quantizer to which their position says something."""
        self.start_from(z.flatten(0, 1), generator)

    def forward(
        self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None = None, draw: Draw | None = None
    ) -> Quantized:
        """Quantize (B, K, D) in float32; `keep` marks the tokens that the loss counts, `draw` has codes drawn.

        A codebook that starts from the data does so on its first training batch if `start_from` was not called before.
        """
        z = z.float()
        if z.ndim != 3 or z.shape[2] != self.dim:
            raise InputError(f"quantizer: expected (B, K, {self.dim}), got {tuple(z.shape)}")
        check_keep(keep, z)
        if draw is not None and not isinstance(self, DrawingQuantizer):
            raise InputError(f"{type(self).__name__} draws no codes at random; plain, ema, simvq and lc do")
        with _refuse_transforms(z):
            z = check_finite(z)
            if self.training and not self.started:
                self.start_from_tokens(z, torch.Generator().manual_seed(0))
            with torch.autocast(z.device.type, enabled=False):
                if isinstance(self, DrawingQuantizer):
                    return self._quantize(self.compared(z), keep, draw)
                return self._quantize(self.compared(z), keep)


class DrawingQuantizer(Quantizer):
    """A quantizer that finds its codes by distances to a table alone, so that they can also be drawn at random."""

    @property
    def rowwise(self) -> bool:
        """See `Quantizer`; bringing tokens to length 1 rounds."""
        return not self.unit

    @abstractmethod
    def _quantize(
        self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None, draw: Draw | None = None
    ) -> Quantized:
        """The forward pass; z is float32 and autocast is off. Its codes are those of `codes_of`."""

    @staticmethod
    def codes_of(z: Float[Tensor, "B K D"], table: Float[Tensor, "N D"], draw: Draw | None) -> Int64[Tensor, "B K"]:
        """Indices of the nearest codewords, or those drawn, where the call asked for that."""
        vectors = z.detach().flatten(0, 1)
        indices = nearest_codeword(vectors, table) if draw is None else draw(vectors, table.detach())
        return indices.view(z.shape[:2])


@contextmanager
def _refuse_transforms(z: Tensor) -> Iterator[None]:
    """InputError where torch.func cannot see through: vmap, and grad of a codebook that is moved meanwhile."""
    try:
        yield
    except RuntimeError as error:
        if not torch._C._functorch.is_functorch_wrapped_tensor(z):  # type: ignore[attr-defined]
            raise
        raise InputError(
            f"quantizer: torch.func cannot transform this call ({error}); without vmap call it on the whole batch, "
            "whose tokens do not see each other, and with .eval(), since in training the call may move the codebook"
        ) from None


def check_finite(tokens: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The tokens; NotFiniteError for NaN or infinity: a start would keep it in the codebook, and rounded it would pass
    for a code.

    What a quantizer makes of finite tokens by weights that are not finite is for it to check.
    """
    if torch.compiler.is_compiling():
        return _finite_in_graph(tokens)
    if not bool(tokens.isfinite().all()):
        raise NotFiniteError("quantizer: the tokens hold NaN or infinity")
    return tokens


# A graph cannot branch on numbers, so there the check is an operator; it returns what it has checked, for an operator
# whose result nothing uses is left out.
@torch.library.custom_op("channelvq::finite", mutates_args=())
def _finite_in_graph(tokens: Tensor) -> Tensor:
    return check_finite(tokens).clone()


@_finite_in_graph.register_fake
def _(tokens: Tensor) -> Tensor:
    return torch.empty_like(tokens)


_finite_in_graph.register_autograd(lambda _, gradient: gradient)


def check_keep(keep: Tensor | None, vectors: Float[Tensor, "B K D"]) -> None:
    """InputError unless `keep` is None or says of each token whether it stays."""
    if keep is None:
        return
    expected = f"keep: expected True or False for each token, (B, K) = {tuple(vectors.shape[:2])}, torch.bool"
    if not isinstance(keep, Tensor):
        raise InputError(f"{expected}, got {type(keep).__name__}")
    if keep.dtype != torch.bool or keep.shape != vectors.shape[:2]:
        raise InputError(f"{expected}, got {tuple(keep.shape)}, {keep.dtype}")
    if keep.device != vectors.device:
        raise InputError(f"keep: it is on {keep.device}, the tokens are on {vectors.device}; move it there")


def kept_rows(
    vectors: Sequence[Float[Tensor, "b K D"]], keep: Sequence[Bool[Tensor, "b K"] | None]
) -> Float[Tensor, "M D"]:
    """The tokens of all parts that their masks keep (None: all of a part)."""
    parts = [z.flatten(0, 1) if kept is None else z[kept] for z, kept in zip(vectors, keep, strict=True)]
    return torch.cat(parts)


def uniform_table(codebook_size: int, dim: int) -> Float[Tensor, "N D"]:
    """Codewords from +-1/N, the usual start of the VQGAN family; always the same ones."""
    table = torch.rand(codebook_size, dim, device="cpu", generator=torch.Generator("cpu").manual_seed(0))
    return (2 * table - 1) / codebook_size
