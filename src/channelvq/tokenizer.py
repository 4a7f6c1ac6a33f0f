"""CVQTokenizer: image <-> sequence of channel tokens.

image (B, 3, H, W) in [-1, 1]
-> encoder            z    (B, C, h, w)      h = H / f
-> [resampler: from any h x w to the home size, which the codebook knows; after it back to h x w]
-> axis reshape            (B, K, D)         channel: K = C, D = h*w;  patch: K = h*w, D = C
-> nearest codeword   ids  (B, K)
-> [nested dropout: channels after c_keep are zero]
-> decoder            image (B, 3, H, W)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.checks import check_floats, whole_numbers
from channelvq.devices import resolve_device, resolve_dtype
from channelvq.errors import InputError
from channelvq.images import ImageInput, images_to_batch, images_to_list, to_pil
from channelvq.images.encoded import MOST_PIXELS
from channelvq.images.geometry import check_size
from channelvq.images.tensors import check_range
from channelvq.nn.modes import CHUNK_ROWS, evaluating, in_chunks, in_chunks_by_size, without_autocast
from channelvq.pretrained import CARD, CODE_TABLES, find_folder, load_module, save_module
from channelvq.quantize.axis import from_vectors, to_vectors
from channelvq.quantize.base import check_keep
from channelvq.quantize.channel_vq import ChannelVQ
from channelvq.quantize.quantized import Quantized
from channelvq.tokenizer_config import CVQConfig, Size

# `encode` takes what a decoder gave, which may overshoot by some tenths; numbers further out are of another convention.
FAR_OUTSIDE = 0.5
LOOKUP_ROWS = 64  # images whose tokens are looked up at once: less time for each where that is allowed


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
        # The last, so that the first weights of the rest are those that they are without it.
        self.resampler = None
        if config.resampler is not None:
            from channelvq.nn.resampler import Resampler

            self.resampler = Resampler(config.resampler, config.latent_channels, config.latent_size)

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
        """Side of the images, in pixels; with a resampler that of the home size."""
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
        self.check_images(x, "encode")
        self._check_device(x, "encode")
        check_range(x, f"encode: images of shape {tuple(x.shape)}, {x.dtype}", FAR_OUTSIDE)
        with without_autocast(x):
            return self.quantizer(self.maps(x.to(self.dtype)), keep)

    def decode(self, z_q: Float[Tensor, "B C h w"], size: int | Size | None = None) -> Float[Tensor, "B 3 H W"]:
        """Quantized feature maps -> images, about [-1, 1], not clamped; raises InputError for another shape or type.

        size: of the images, (height, width); None: the home size. With a resampler any that `tokenize` works at.
        """
        c, side = self.config.latent_channels, self.config.latent_size
        check_floats(z_q, (c, side, side), "decode: expected feature maps", "")
        self._check_device(z_q, "decode")
        asked = self.check_output_size(size, "decode", worked_at=True)
        with without_autocast(z_q):
            return self.painted(z_q.to(self.dtype), asked)

    def maps(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Images of a working size -> the feature maps of the home size that the quantizer is given; no checks."""
        z = self.encoder(x)
        return z if self.resampler is None else self.resampler.gather(z)

    def painted(self, z_q: Float[Tensor, "B C h w"], size: Size) -> Float[Tensor, "B 3 H W"]:
        """Maps of the home size -> images of a working size."""
        if self.resampler is not None:  # it computes in float32 at least
            z_q = self.resampler.spread(z_q, self.config.maps_size(size)).to(self.dtype)
        return self.decoder(z_q)

    def check_output_size(self, size: int | Size | None, name: str, *, worked_at: bool = False) -> Size:
        """(height, width), None: the home size; InputError for one that it cannot make (worked_at: unresized)."""
        home = self.image_size, self.image_size
        asked = home if size is None else check_size(size)
        if asked != home and self.resampler is None:
            raise InputError(
                f"{name}: size {asked}: this tokenizer makes images of {home} alone; one that was trained with "
                "model.resampler makes any"
            )
        most = max(MOST_PIXELS, self.config.max_pixels)
        if asked[0] * asked[1] > most:
            raise InputError(f"{name}: size {asked}: more than the {most} pixels allowed")
        if worked_at and asked != (working := self.config.working_size(asked)):
            raise InputError(f"{name}: size {asked} is none that the decoder works at, the nearest is {working}")
        return asked

    def check_images(self, x: Any, name: str) -> None:
        """InputError, beginning with `name`, unless `x` is a batch of images of a size that this tokenizer works at."""
        shape = (self.image_size, self.image_size)
        if self.resampler is not None and isinstance(x, Tensor) and x.ndim == 4 and 0 not in x.shape:
            shape = self.config.working_size((x.shape[2], x.shape[3]))  # the nearest that it could be
        check_floats(x, (3, *shape), f"{name}: expected images", " in [-1, 1]")

    def _check_device(self, x: Tensor, name: str) -> None:
        if x.device != self.device:
            raise InputError(f"{name}: the tensor is on {x.device}, the tokenizer on {self.device}; move it there")

    def forward(
        self, x: Float[Tensor, "B 3 H W"], keep: Bool[Tensor, "B K"] | None = None, *, quantize: bool = True
    ) -> tuple[Float[Tensor, "B 3 H W"], Quantized | None]:
        """Reconstruction and what the quantizer returned, for training; quantize=False skips the codebook.

        Without the checks and conversions of `encode` that a training step must not wait for.
        """
        self.check_images(x, "forward")
        z, size = self.maps(x), (x.shape[2], x.shape[3])
        if not quantize:
            if keep is not None:
                vectors = to_vectors(z, self.config.axis)
                check_keep(keep, vectors)
                vectors = vectors.masked_fill(~keep[:, :, None], 0.0)
                z = from_vectors(vectors, self.config.axis, (z.shape[2], z.shape[3]))
            return self.painted(z, size), None
        quantized = self.quantizer(z, keep)
        return self.painted(quantized.z_q, size), quantized

    # Images and ids

    @torch.no_grad()
    def tokenize(self, images: ImageInput | Sequence[ImageInput], *, exact: bool = True) -> Int64[Tensor, "B K"]:
        """Images -> ids in 0..N-1.

        images: anything `channelvq.images` reads, or a (B, 3, H, W) tensor in [-1, 1]. Other sizes are cropped to a
        centred square and resized with antialiasing. With a resampler nothing is cropped: each image is resized, with
        antialiasing, to the nearest size whose sides are multiples of the network's downsampling; one of more pixels
        than `model.resampler.max_pixels` is reduced to about that many first. Sizes may differ within a call. exact:
        ids do not depend on the other images of the call; False drops the padding that this costs.
        """
        maps, rowwise = self.latents(images, exact=exact), self.quantizer.quantizer.rowwise
        with evaluating(self):
            return in_chunks(
                lambda z: self.quantizer(z).indices, maps,
                exact=exact and not rowwise, rows=LOOKUP_ROWS if rowwise else CHUNK_ROWS,
            )  # fmt: skip

    @torch.no_grad()
    def latents(self, images: ImageInput | Sequence[ImageInput], *, exact: bool = True) -> Float[Tensor, "B C h w"]:
        """Images, all that `tokenize` takes -> the feature maps of the home size before the quantizer."""
        with evaluating(self):
            if self.resampler is None:
                batch = images_to_batch(images, size=self.image_size).to(self.device, self.dtype)
                return in_chunks(self.maps, batch, exact=exact)
            pictures = [x.to(self.device, self.dtype) for x in images_to_list(images, self.config.read_at)]
            return in_chunks_by_size(self.maps, pictures, rows=self.rows_at_once, exact=exact)

    def rows_at_once(self, size: Size) -> int:
        """Images of a working size in a chunk: fewer of large ones, so that memory is bounded."""
        return max(1, min(CHUNK_ROWS, CHUNK_ROWS * self.image_size**2 // (size[0] * size[1])))

    @overload
    def detokenize(
        self, ids: Tensor, output: Literal["pil"] = "pil", *,
        size: int | Size | None = None, exact: bool = True,
    ) -> list[Image.Image]: ...  # fmt: skip
    @overload
    def detokenize(
        self, ids: Tensor, output: Literal["tensor"], *, size: int | Size | None = None, exact: bool = True
    ) -> Tensor: ...
    @torch.no_grad()
    def detokenize(
        self,
        ids: Int64[Tensor, "B k"],
        output: Literal["pil", "tensor"] = "pil",
        *,
        size: int | Size | None = None,
        exact: bool = True,
    ) -> list[Image.Image] | Float[Tensor, "B 3 H W"]:
        """Ids of any length k, 1 <= k <= K -> images: a list of PIL images, or a tensor in [-1, 1].

        A prefix is decoded with the missing tokens at zero, as nested dropout trained it. A single sequence (k,)
        counts as a batch of one. size: of the images, (height, width) or a side; None: the home size. Another one needs
        a resampler: the images are made at the nearest size that `tokenize` works at and, where that differs, resized.
        Raises InputError on an id, a length or a size out of range.
        """
        if output not in ("pil", "tensor"):
            raise InputError(f"detokenize: output is 'pil' or 'tensor', got {output!r}")
        asked = self.check_output_size(size, "detokenize")
        ids, working = self.check_ids(ids), self.config.working_size(asked)
        with evaluating(self):
            images = in_chunks(
                lambda i: self.painted(self._latents_of(i), working), ids, exact=exact, rows=self.rows_at_once(working)
            )
        images = images.clamp(-1.0, 1.0)
        if working != asked:
            images = F.interpolate(images, asked, mode="bicubic", antialias=True).clamp(-1.0, 1.0)
        return to_pil(images) if output == "pil" else images

    @torch.no_grad()
    def detokenize_prefixes(self, rows: Sequence[Sequence[int]], size: Size | None = None) -> list[Image.Image]:
        """As `detokenize`, of sequences of different lengths, each as it is alone; size: one that is worked at."""
        if not rows:
            raise InputError("detokenize_prefixes: expected at least one sequence of ids, got none")
        asked = self.check_output_size(size, "detokenize_prefixes", worked_at=True)
        latents = torch.cat([self._latents_of(self.check_ids([list(row)])) for row in rows])
        with evaluating(self):
            images = in_chunks(lambda z: self.painted(z, asked), latents, rows=self.rows_at_once(asked))
        return to_pil(images.clamp(-1.0, 1.0))

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
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> "CVQTokenizer":
        """Load a tokenizer: "bundled" or "bundled-fashion" of this package, a folder, or the id of a hub repository.

        device, dtype: of its weights, see `resolve_device`, `resolve_dtype`; some ids differ in another dtype than the
        saved one. options: subfolder, and those of `huggingface_hub.snapshot_download`, for a hub repository.
        """
        # Not the mixin's own loader: it builds the config before unknown settings could be named well.
        place, kind, name = resolve_device(device), resolve_dtype(dtype), pretrained_model_name_or_path
        folder = find_folder("tokenizer", name, "tokenizer", more_files=(CODE_TABLES,), **options)
        tokenizer = load_module(cls, CVQConfig, folder)
        tokenizer.folder = folder
        return tokenizer.to(place, kind)
