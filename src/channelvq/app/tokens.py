"""What the page says of one picture and its tokens: prefixes, other codecs at the same bytes, changes of one token.

Written against what every tokenizer has: any axis, any quantizer, any number of tokens and codes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from channelvq.checks import check_whole_number
from channelvq.codec import compress_ids
from channelvq.evaluate.codecs import CodecResult, jpeg, webp
from channelvq.evaluate.metrics import psnr
from channelvq.images import load_image, resize_crop, to_pil, to_tensor
from channelvq.images.encoded import check_pixels
from channelvq.nn.modes import evaluating, in_chunks
from channelvq.packed_size import num_bytes
from channelvq.quantize.axis import from_vectors, to_vectors
from channelvq.tokenizer import CVQTokenizer

CODECS: dict[str, Callable[[Tensor, int], CodecResult]] = {"JPEG": jpeg, "WebP": webp}
LOUDER = 3  # differences are shown so many times as large


@dataclass(frozen=True, eq=False)
class Tokenized:
    """A picture as the tokenizer sees it, and all of its tokens."""

    picture: Image.Image
    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Version:
    """The picture after a codec. fits: False where the codec needs more bytes than it was given."""

    name: str
    picture: Image.Image
    num_bytes: int
    psnr: float
    fits: bool = True


@dataclass(frozen=True, eq=False)
class Change:
    """Before and after one token was changed, and the difference on grey."""

    before: Image.Image
    after: Image.Image
    difference: Image.Image
    psnr: float


def read_picture(path: str | Path) -> Image.Image:
    """An uploaded file as RGB; InputError for what is no picture, or has too many pixels."""
    check_pixels(Path(path), "the picture")
    return load_image(Path(path))


def tokenized(tokenizer: CVQTokenizer, picture: Image.Image) -> Tokenized:
    """Crop a picture to what the tokenizer takes, and tokenize it."""
    seen = resize_crop(picture, tokenizer.image_size)
    return Tokenized(seen, tuple(tokenizer.tokenize(seen)[0].tolist()))


def prefix(tokenizer: CVQTokenizer, of: Tokenized, length: int) -> Version:
    """The picture of the first tokens; InputError for a length that is none."""
    length = check_whole_number("tokens", length, 1, len(of.ids))
    shown = tokenizer.detokenize(torch.tensor([of.ids[:length]]))[0]
    return Version("CVQ", shown, num_bytes(length, tokenizer.codebook_size), _psnr(shown, of.picture))


def rivals(of: Tokenized, size: int) -> list[Version]:
    """The same picture by JPEG and WebP within `size` bytes, or the smallest that they can."""
    found, versions = to_tensor(of.picture)[None], []
    for name, codec in CODECS.items():
        result = codec(found, size)
        shown = to_pil(result.images)[0]
        fits, used = bool(result.fits[0]), int(result.num_bytes[0])
        versions.append(Version(name, shown, used, _psnr(shown, of.picture), fits))
    return versions


def contributions(tokenizer: CVQTokenizer, ids: Sequence[int]) -> list[Image.Image]:
    """What each token adds: the picture of k tokens less that of k - 1, on grey; of the first one its picture."""
    rows = [list(ids[: k + 1]) for k in range(len(ids))]
    pictures = torch.stack([to_tensor(picture) for picture in tokenizer.detokenize_prefixes(rows)]).float()
    return [*to_pil(pictures[:1].byte()), *on_grey(pictures[1:] - pictures[:-1])]


@torch.no_grad()
def changed(tokenizer: CVQTokenizer, ids: Sequence[int], number: int, code: int | None) -> Change:
    """Put another code in the place of token `number` (from 1), or nothing at all (None).

    Raises InputError for a token or a code that there is not.
    """
    number = check_whole_number("token", number, 1, len(ids))
    rows = torch.tensor([list(ids), list(ids)])
    if code is not None:
        rows[1, number - 1] = check_whole_number("code", code, 0, tokenizer.codebook_size - 1)
    vectors = to_vectors(tokenizer.ids_to_latents(rows), tokenizer.config.axis).clone()
    if code is None:
        vectors[1, number - 1] = 0.0
    before, after = to_pil(_decoded(tokenizer, vectors))
    difference = to_tensor(after).float() - to_tensor(before).float()
    return Change(before, after, on_grey(difference[None])[0], _psnr(after, before))


def file_of(tokenizer: CVQTokenizer, of: Tokenized, length: int) -> bytes:
    """The .cvq file of the first tokens."""
    return compress_ids(torch.tensor([of.ids[:length]]), tokenizer)[0]


def on_grey(differences: Float[Tensor, "B 3 h w"]) -> list[Image.Image]:
    """Differences of pixels, -255 to 255, as pictures: grey is none."""
    return to_pil((128 + LOUDER * differences).round().clamp(0, 255).byte()) if len(differences) else []


def _decoded(tokenizer: CVQTokenizer, vectors: Float[Tensor, "B K D"]) -> Float[Tensor, "B 3 H W"]:
    side = tokenizer.config.latent_size
    with evaluating(tokenizer):
        return in_chunks(tokenizer.decode, from_vectors(vectors, tokenizer.config.axis, (side, side))).clamp(-1, 1)


def _psnr(shown: Image.Image, reference: Image.Image) -> float:
    return float(psnr(to_tensor(shown)[None], to_tensor(reference)[None])[0])
