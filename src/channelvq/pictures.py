"""Pictures of tokenizers at work."""

from PIL import Image

from channelvq.codec import num_bytes
from channelvq.images import resize_crop, strip
from channelvq.tokenizer import CVQTokenizer


def prefix_lengths(num_tokens: int) -> list[int]:
    """1, 2, 4, ... and num_tokens."""
    return [*(2**i for i in range((num_tokens - 1).bit_length())), num_tokens]


def prefix_strip(
    tokenizer: CVQTokenizer, image: Image.Image, num_tokens: int | None = None, scale: int = 2
) -> Image.Image:
    """The image as the tokenizer sees it, then decoded from 1, 2, 4, ... tokens (up to num_tokens), captioned."""
    ids = tokenizer.tokenize(image)
    lengths = prefix_lengths(num_tokens or tokenizer.num_tokens)
    decoded = [tokenizer.detokenize(ids[:, :k])[0] for k in lengths]
    captions = [f"{k} = {num_bytes(k, tokenizer.codebook_size)} B" for k in lengths]
    return strip([resize_crop(image, tokenizer.image_size), *decoded], captions=["original", *captions], scale=scale)
