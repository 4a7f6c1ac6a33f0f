"""Pictures of tokenizers at work."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from channelvq.checks import check_whole_number, whole_number
from channelvq.errors import InputError
from channelvq.images import normalize, resize_crop, strip, to_uint8
from channelvq.packed_size import num_bytes
from channelvq.tokenizer import CVQTokenizer

PART = 64  # images in memory at a time


def restored(
    tokenizer: CVQTokenizer, images: UInt8[Tensor, "n 3 h w"], num_tokens: int | None = None, *, exact: bool = True
) -> UInt8[Tensor, "n 3 h w"]:
    """Images through their first tokens (None: all) and back, on the CPU; exact: see `CVQTokenizer.tokenize`."""
    parts = []
    for part in images.split(PART):
        ids = tokenizer.tokenize(normalize(part), exact=exact)[:, :num_tokens]
        parts.append(to_uint8(tokenizer.detokenize(ids, "tensor", exact=exact)).cpu())
    return torch.cat(parts)


def prefix_lengths(num_tokens: int) -> list[int]:
    """1, 2, 4, ... and num_tokens, whether that is a power of two or not; InputError below 1."""
    num_tokens = check_whole_number("num_tokens", num_tokens, 1)
    return [*(2**i for i in range((num_tokens - 1).bit_length())), num_tokens]


def prefix_strips(
    tokenizer: CVQTokenizer, images: Sequence[Image.Image], num_tokens: int | None = None, scale: int = 2
) -> list[Image.Image]:
    """Each image as the tokenizer sees it, then from 1, 2, 4, ... tokens (up to num_tokens), captioned."""
    most = tokenizer.num_tokens
    if num_tokens is not None and not 1 <= (whole_number(num_tokens) or 0) <= most:
        raise InputError(f"num_tokens={num_tokens}: the tokenizer has {most} tokens an image, give 1 to {most}")
    ids = tokenizer.tokenize(images)
    lengths = prefix_lengths(most if num_tokens is None else num_tokens)
    decoded = [tokenizer.detokenize(ids[:, :k]) for k in lengths]
    captions = ["original", *(f"{k} = {num_bytes(k, tokenizer.codebook_size)} B" for k in lengths)]
    return [
        strip([resize_crop(image, tokenizer.image_size), *prefixes], captions=captions, scale=scale)
        for image, *prefixes in zip(images, *decoded, strict=True)
    ]
