"""CVQTokenizer: image <-> sequence of channel tokens.

image (B, 3, H, W) in [-1, 1]
-> encoder            z    (B, C, h, w)      h = H / f
-> axis reshape            (B, K, D)         channel: K = C, D = h*w;  patch: K = h*w, D = C
-> nearest codeword   ids  (B, K)
-> [nested dropout: channels after c_keep are zero]
-> decoder            image (B, 3, H, W)
"""

from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, overload

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int64
from PIL import Image
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from channelvq.checks import whole_numbers
from channelvq.config import STRICT, ImageSize
from channelvq.devices import resolve_device
from channelvq.errors import InputError
from channelvq.images import ImageInput, images_to_batch, to_pil
from channelvq.images.tensors import check_range
from channelvq.nn.conv import ConvConfig
from channelvq.nn.modes import evaluating, in_chunks, without_autocast
from channelvq.nn.networks import AnyNetworkConfig
from channelvq.pretrained import CARD, CODE_TABLES, find_folder, load_module, save_module
from channelvq.quantize.axis import Axis, from_vectors, to_vectors
from channelvq.quantize.base import check_keep
from channelvq.quantize.channel_vq import ChannelVQ
from channelvq.quantize.codebook import PlainConfig
from channelvq.quantize.quantized import Quantized
from channelvq.quantize.registry import AnyQuantizerConfig

# `encode` takes what a decoder gave, which may overshoot by some tenths; numbers further out are of another convention.
FAR_OUTSIDE = 0.5


@dataclass(frozen=True, config=STRICT)
class CVQConfig:
    """image_size: side of the square images in pixels. latent_channels: C, the number of tokens on the channel axis.

    axis: what a token stands for. network: encoder and decoder. quantizer: the codebook, and how it learns.
    """

    image_size: ImageSize = 64
    latent_channels: PositiveInt = 64
    axis: Axis = "channel"
    network: AnyNetworkConfig = field(default_factory=ConvConfig)
    quantizer: AnyQuantizerConfig = field(default_factory=PlainConfig)

    def __post_init__(self) -> None:
        if self.image_size % self.network.downsampling:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of the network's downsampling "
                f"{self.network.downsampling} ({self.network.downsampling_reason})"
            )

    @property
    def latent_size(self) -> int:
        """Side of the feature maps, h = w."""
        return self.image_size // self.network.downsampling

    @property
    def num_tokens(self) -> int:
        """Tokens an image: C, or h*w on the patch axis."""
        return self.latent_channels if self.axis == "channel" else self.latent_size**2

    @property
    def codebook_dim(self) -> int:
        """Numbers in a codeword: h*w, or C on the patch axis."""
        return self.latent_size**2 if self.axis == "channel" else self.latent_channels


class CVQTokenizer(nn.Module, PyTorchModelHubMixin, library_name="channelvq", model_card_template=CARD):
    """Image tokenizer with one token for each latent channel (arXiv 2605.26089), or for each patch for comparison.

    folder: where it was loaded from; None for one that was built.
    """

    folder: Path | None = None

    def __init__(self, config: CVQConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CVQConfig()
        self.encoder = config.network.build_encoder(config.latent_channels, config.image_size)
        self.quantizer = ChannelVQ(
            codebook_dim=config.codebook_dim, num_tokens=config.num_tokens, axis=config.axis, config=config.quantizer
        )
        self.decoder = config.network.build_decoder(config.latent_channels, config.image_size, self.encoder)

    @property
    def num_tokens(self) -> int:
        """Tokens an image, K (= C on the channel axis)."""
        return self.config.num_tokens

    @property
    def codebook_size(self) -> int:
        """Number of codewords, N."""
        return self.quantizer.codebook_size

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return self.config.image_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._one_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._one_weight.dtype

    @property
    def _one_weight(self) -> Tensor:
        """Any of them: a linear tokenizer with a codebook of averages has no parameter, only buffers."""
        return next(t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point())

    # Tensors

    def encode(self, x: Float[Tensor, "B 3 H W"], keep: Bool[Tensor, "B K"] | None = None) -> Quantized:
        """Images in [-1, 1] -> `Quantized` with z_q (B, C, h, w) and indices (B, K); keep: see `ChannelVQ.forward`.

        In the model's own precision, as all methods but `forward`: an autocast around the call changes no id.
        Floats of another precision than the model's are converted. Raises InputError for another shape or type, no
        image, or values far outside [-1, 1]; `tokenize` takes images of every other form.
        """
        self._check_images(x, "encode")
        self._check_device(x, "encode")
        check_range(x, f"encode: images of shape {tuple(x.shape)}, {x.dtype}", FAR_OUTSIDE)
        with without_autocast(x):
            return self.quantizer(self.encoder(x.to(self.dtype)), keep)

    def decode(self, z_q: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Quantized feature maps -> images, about [-1, 1], not clamped; raises InputError for another shape or type."""
        c, side = self.config.latent_channels, self.config.latent_size
        _check_floats(z_q, (c, side, side), "decode: expected feature maps", "")
        self._check_device(z_q, "decode")
        with without_autocast(z_q):
            return self.decoder(z_q.to(self.dtype))

    def _check_images(self, x: Any, name: str) -> None:
        size = self.image_size
        _check_floats(x, (3, size, size), f"{name}: expected images", " in [-1, 1]")

    def _check_device(self, x: Tensor, name: str) -> None:
        if x.device != self.device:
            raise InputError(f"{name}: the tensor is on {x.device}, the tokenizer on {self.device}; move it there")

    def forward(
        self, x: Float[Tensor, "B 3 H W"], keep: Bool[Tensor, "B K"] | None = None, *, quantize: bool = True
    ) -> tuple[Float[Tensor, "B 3 H W"], Quantized | None]:
        """Reconstruction and what the quantizer returned, for training; quantize=False skips the codebook.

        Without the checks and conversions of `encode` that a training step must not wait for.
        """
        self._check_images(x, "forward")
        z = self.encoder(x)
        if not quantize:
            if keep is not None:
                vectors = to_vectors(z, self.config.axis)
                check_keep(keep, vectors)
                vectors = vectors.masked_fill(~keep[:, :, None], 0.0)
                z = from_vectors(vectors, self.config.axis, (z.shape[2], z.shape[3]))
            return self.decoder(z), None
        quantized = self.quantizer(z, keep)
        return self.decoder(quantized.z_q), quantized

    # Images and ids

    def tokenize(self, images: ImageInput | Sequence[ImageInput], *, exact: bool = True) -> Int64[Tensor, "B K"]:
        """Images -> ids in 0..N-1.

        images: anything `channelvq.images` reads, or a (B, 3, H, W) tensor in [-1, 1]. Other sizes are cropped to a
        centred square and resized with antialiasing. exact: ids do not depend on the other images of the call;
        False drops the padding that this costs.
        """
        return self._of_images(lambda x: self.quantizer(self.encoder(x)).indices, images, exact)

    def latents(self, images: ImageInput | Sequence[ImageInput], *, exact: bool = True) -> Float[Tensor, "B C h w"]:
        """Images, all that `tokenize` takes -> the encoder's feature maps before the quantizer."""
        return self._of_images(self.encoder, images, exact)

    @torch.no_grad()
    def _of_images(
        self, function: Callable[[Tensor], Tensor], images: ImageInput | Sequence[ImageInput], exact: bool
    ) -> Tensor:
        batch = images_to_batch(images, size=self.image_size).to(self.device, self.dtype)
        with evaluating(self):
            return in_chunks(function, batch, exact=exact)

    @overload
    def detokenize(self, ids: Tensor, output: Literal["pil"] = "pil", *, exact: bool = True) -> list[Image.Image]: ...
    @overload
    def detokenize(self, ids: Tensor, output: Literal["tensor"], *, exact: bool = True) -> Tensor: ...
    @torch.no_grad()
    def detokenize(
        self, ids: Int64[Tensor, "B k"], output: Literal["pil", "tensor"] = "pil", *, exact: bool = True
    ) -> list[Image.Image] | Float[Tensor, "B 3 H W"]:
        """Ids of any length k, 1 <= k <= K -> images: a list of PIL images, or a tensor in [-1, 1].

        A prefix is decoded with the missing tokens at zero, as nested dropout trained it. A single sequence (k,)
        counts as a batch of one. Raises InputError on an id out of range or a length out of range.
        """
        if output not in ("pil", "tensor"):
            raise InputError(f"detokenize: output is 'pil' or 'tensor', got {output!r}")
        ids = self.check_ids(ids)
        with evaluating(self):
            images = in_chunks(lambda i: self.decoder(self._latents_of(i)), ids, exact=exact).clamp(-1.0, 1.0)
        return to_pil(images) if output == "pil" else images

    @torch.no_grad()
    def detokenize_prefixes(self, rows: Sequence[Sequence[int]]) -> list[Image.Image]:
        """As `detokenize`, of sequences of different lengths: each picture is the one that it is alone."""
        if not rows:
            raise InputError("detokenize_prefixes: expected at least one sequence of ids, got none")
        latents = torch.cat([self._latents_of(self.check_ids([list(row)])) for row in rows])
        with evaluating(self):
            return to_pil(in_chunks(self.decoder, latents).clamp(-1.0, 1.0))

    def ids_to_latents(self, ids: Int64[Tensor, "B k"]) -> Float[Tensor, "B C h w"]:
        """Codewords of the ids laid out as feature maps, zeros for the tokens that are missing.

        Takes and refuses what `detokenize` does.
        """
        return self._latents_of(self.check_ids(ids))

    def _latents_of(self, ids: Int64[Tensor, "B k"]) -> Float[Tensor, "B C h w"]:
        codes = self.quantizer.indices_to_codes(ids).to(self.dtype)
        missing = codes.new_zeros(len(ids), self.num_tokens - ids.shape[1], self.config.codebook_dim)
        side = self.config.latent_size
        return from_vectors(torch.cat([codes, missing], dim=1), self.config.axis, (side, side))

    def check_ids(self, ids: Any) -> Int64[Tensor, "B k"]:
        """Ids as int64 (B, k) on the device; raises InputError that names the id or the length that is out of range."""
        try:
            ids = torch.as_tensor(ids, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"ids: expected a tensor or rows of equal length of whole numbers ({error})") from None
        ids = whole_numbers("ids", ids)
        ids = ids[None] if ids.ndim == 1 else ids
        if ids.ndim != 2 or len(ids) == 0 or not 1 <= ids.shape[1] <= self.num_tokens:
            raise InputError(
                f"ids: expected (B, k) with B >= 1 and k in 1..{self.num_tokens}, got shape {tuple(ids.shape)}"
            )
        outside = (ids < 0) | (ids >= self.codebook_size)
        if outside.any():
            row, column = outside.nonzero()[0].tolist()
            raise InputError(
                f"ids: {ids[row, column].item()} at image {row}, token {column} is outside 0..{self.codebook_size - 1}"
            )
        return ids

    # Files

    def _save_pretrained(self, save_directory: Path) -> None:
        save_module(self, self.config, save_directory)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, device: str | torch.device = "cpu", **options: Any
    ) -> "CVQTokenizer":
        """Load a tokenizer: "bundled" for the one inside this package, a folder, or the id of a hub repository.

        device: where its weights go, see `resolve_device`. options: subfolder, and those of
        `huggingface_hub.snapshot_download` (revision, cache_dir, token, ...), for a hub repository. Not the mixin's own
        loader: it builds the config before unknown settings could be named well.
        """
        place, more = resolve_device(device), (CODE_TABLES,)
        folder = find_folder("tokenizer", pretrained_model_name_or_path, "tokenizer", more_files=more, **options)
        tokenizer = load_module(cls, CVQConfig, folder).to(place)
        tokenizer.folder = folder
        return tokenizer


def _check_floats(x: Any, shape: tuple[int, ...], expected: str, values: str) -> None:
    expected += f" (B, {', '.join(map(str, shape))}), B >= 1, float{values}"
    if not isinstance(x, Tensor):
        raise InputError(f"{expected}, got {type(x).__name__}")
    if x.shape[1:] != shape or x.ndim != 1 + len(shape) or len(x) == 0 or not x.is_floating_point():
        raise InputError(f"{expected}, got {tuple(x.shape)}, {x.dtype}")
