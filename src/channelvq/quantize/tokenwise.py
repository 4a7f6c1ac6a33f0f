"""SimVQ with one linear layer for each token: one shared codebook, seen through a map of the token's own.

e_{k,n} = W_k c_n        c: (N, r), shared by all tokens;  W: (K, D, r), learned, a map for each token position k
z (B, K, D) -> argmin_n ||z_k - W_k c_n|| -> e -> straight-through
loss = ||sg[z] - W c||^2 + beta ||z - sg[W c]||^2     (SimVQ, Zhu et al. 2024, arXiv 2411.02038, has one W for all)

Why: with one codebook in D numbers a codeword of 12 bits stands for all D of them alike. Here a map decides which r
directions of its token the bits go to, and how far codewords lie apart in each (docs/decisions/0014).
"""

from dataclasses import replace
from typing import Annotated, Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from channelvq.config import STRICT, CodebookSize
from channelvq.errors import InputError
from channelvq.lookup.mapped import nearest_mapped
from channelvq.quantize.base import Quantizer
from channelvq.quantize.draw import Draw
from channelvq.quantize.quantized import Quantized, straight_through, vq_losses
from channelvq.quantize.tokenwise_start import place_maps, random_codebook


@dataclass(frozen=True, config=STRICT)
class TokenwiseSimVQConfig:
    """beta, codebook_weight: see `PlainConfig`.

    num_tokens: K; None takes it from the first tokens seen (in a tokenizer: from its own settings). rank: r, the
    numbers in a shared codeword, at most D of them are used. power: codewords start as sign(g) |g|^power of Gaussian g;
    above 1 they reach further out than the data, which is what the squared error asks for. learn_codebook: whether c is
    learned beside W. start: "data" takes W from the principal directions of the first tokens seen, with the bits of a
    token given to them by reverse water-filling, and improves W and c in `iterations` rounds of assignment and least
    squares; "normal" leaves W_k an identity and c as drawn.
    """

    kind: Literal["simvq-tokenwise"] = "simvq-tokenwise"
    codebook_size: CodebookSize = 4096
    num_tokens: PositiveInt | None = None
    rank: PositiveInt = 24
    beta: Annotated[float, Field(ge=0)] = 0.25
    codebook_weight: Annotated[float, Field(ge=0)] = 1.0
    power: Annotated[float, Field(gt=0)] = 1.3
    learn_codebook: bool = True
    start: Literal["data", "normal"] = "data"
    iterations: NonNegativeInt = 5
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def build(self, dim: int, num_tokens: int | None = None) -> "TokenwiseSimVQCodebook":
        """The quantizer, for tokens of `dim` numbers; raises InputError where the settings say another K."""
        if num_tokens is not None and self.num_tokens not in (None, num_tokens):
            raise InputError(
                f"model.quantizer.num_tokens is {self.num_tokens}, the tokenizer has {num_tokens} tokens; leave it out"
            )
        return TokenwiseSimVQCodebook(replace(self, num_tokens=num_tokens or self.num_tokens), dim)


class TokenwiseSimVQCodebook(Quantizer):
    """N codewords for each of K tokens, W_k c_n."""

    def __init__(self, config: TokenwiseSimVQConfig, dim: int) -> None:
        super().__init__(config.codebook_size, dim, started=config.start == "normal")
        self.config = config
        self.rank = min(config.rank, dim)
        generator = torch.Generator("cpu").manual_seed(config.seed)
        self.basis = nn.Parameter(
            random_codebook(config.codebook_size, self.rank, config.power, generator),
            requires_grad=config.learn_codebook,
        )
        if config.num_tokens is None:
            self.weight = cast(nn.Parameter, UninitializedParameter())
        else:
            self.weight = nn.Parameter(torch.eye(dim, self.rank).repeat(config.num_tokens, 1, 1))

    @property
    def num_tokens(self) -> int | None:
        """K, None before the first tokens were seen."""
        return None if isinstance(self.weight, UninitializedParameter) else len(self.weight)

    @property
    def rowwise(self) -> bool:
        """See `Quantizer`: products are in float64, and what it cannot tell apart counts as equal."""
        return True

    def codes(self) -> Float[Tensor, "N r"]:
        """The shared codebook c: what an index stands for whatever its token; `indices_to_codes` gives W_k c_n."""
        return self.basis

    def indices_to_codes(self, indices: Int64[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        """Codewords by index, of all tokens or of the first ones; equal to the bit to what the forward pass used."""
        k, known = indices.shape[1], self.num_tokens
        if known is None or k > known:
            raise InputError(f"indices_to_codes: {k} tokens were given, this codebook is for {known or 'none yet'}")
        return self._codes_of(indices, slice(0, k))

    def _codes_of(self, indices: Int64[Tensor, "B k"], tokens: slice) -> Float[Tensor, "B k D"]:
        """Codewords of some tokens in a row."""
        # Number by number: a product rounds differently for another number of rows, a sum in this order does not.
        chosen, maps = self.basis[indices], self.weight[tokens]
        out = maps[..., 0] * chosen[..., :1]
        for i in range(1, self.rank):
            out = out + maps[..., i] * chosen[..., i : i + 1]
        return out

    @torch.no_grad()
    def start_from(self, vectors: Float[Tensor, "M D"], generator: torch.Generator) -> None:
        """As of any quantizer, for the tokens of whole images in order, M = images * K; K must be known."""
        if (known := self.num_tokens) is None or len(vectors) % known or len(vectors) == 0:
            raise InputError(
                f"start: {len(vectors)} tokens are not whole images of {known or 'a known number of'} tokens each; "
                "give num_tokens, or feature maps"
            )
        super().start_from(vectors, generator)

    def start_from_tokens(self, z: Float[Tensor, "B K D"], generator: torch.Generator) -> None:
        """Start each token's map from its own vectors."""
        self._know(z.shape[1])
        super().start_from_tokens(z, generator)

    def forward(
        self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None = None, draw: Draw | None = None
    ) -> Quantized:
        """See `Quantizer.forward`; K is that of the settings or of the first call."""
        if z.ndim == 3:
            self._know(z.shape[1])
        return super().forward(z, keep, draw)

    def _place(self, vectors: Float[Tensor, "M D"], generator: torch.Generator) -> None:
        z = vectors.unflatten(0, (-1, len(self.weight)))
        maps, codebook = place_maps(z, self.basis.float(), self.config.iterations)
        self.weight.copy_(maps)
        self.basis.copy_(codebook)

    def _quantize(self, z: Float[Tensor, "B K D"], keep: Bool[Tensor, "B K"] | None) -> Quantized:
        indices = nearest_mapped(z, self.weight, self.basis)
        with torch.no_grad():
            codes = self.indices_to_codes(indices)
        # The gradients of W and c by one product of all tokens; its numbers are those of `indices_to_codes`.
        product = torch.einsum("bkr,kdr->bkd", self.basis[indices], self.weight)
        losses = vq_losses(
            z, straight_through(product, codes), keep, codebook=self.config.codebook_weight, beta=self.config.beta
        )
        return Quantized(straight_through(z, codes), indices, losses)

    def _know(self, num_tokens: int) -> None:
        """Take K from the first tokens; InputError where it is another one later."""
        if (known := self.num_tokens) is None:
            self._shape(num_tokens)
        elif num_tokens != known:
            raise InputError(f"quantizer: expected {known} tokens an image, one for each map, got {num_tokens}")

    @torch.no_grad()
    def _shape(self, num_tokens: int) -> None:
        assert isinstance(self.weight, UninitializedParameter)
        identity = torch.eye(self.dim, self.rank, device=self.basis.device, dtype=self.basis.dtype)
        self.weight.materialize((num_tokens, *identity.shape), device=identity.device, dtype=identity.dtype)
        self.weight.copy_(identity.expand_as(self.weight))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Without the maps, as long as nobody knows how many there are."""
        if self.num_tokens is not None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        for name in ("basis", "started"):
            tensor = getattr(self, name)
            destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        given = state_dict.get(f"{prefix}weight")
        if self.num_tokens is None and given is None:  # saved before the first tokens were seen, as this one is
            state_dict = state_dict | {f"{prefix}weight": self.weight}
        elif self.num_tokens is None and isinstance(given, Tensor) and given.ndim == 3:
            self._shape(len(given))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
