"""Ids chosen by the error of the picture that they give, not by the distance of each codeword.

z + d -> quantizer -> decoder -> picture;  d -> argmin ||picture - image||^2 by Adam, gradients straight through

Analysis by synthesis of one image at a time, at the cost of `steps` decodings and their gradients. The decoder stays as
it is, so whoever has the tokenizer reads the ids. Campos et al. 2019, arXiv 1906.01223, do it with a learned codec.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from channelvq.checks import check_whole_number
from channelvq.images import ImageInput, images_to_batch
from channelvq.nn.modes import CHUNK_ROWS, evaluating
from channelvq.tokenizer import CVQTokenizer

RATE = 0.03  # of Adam, in standard deviations of the codewords; 0.01 and 0.1 gave less on photographs


def refine_ids(
    tokenizer: CVQTokenizer,
    images: ImageInput | Sequence[ImageInput],
    *,
    steps: int = 30,
    num_tokens: int | None = None,
) -> Int64[Tensor, "B k"]:
    """Ids whose picture is as near to the image as `tokenize`'s, mean square over pixels, or nearer.

    images: all that `CVQTokenizer.tokenize` takes. num_tokens: the length that it is to be good at (default: all).
    Unlike those of `tokenize`, the ids may depend on the other images of the call in their last bits.
    """
    check_whole_number("steps", steps, 0)
    most = tokenizer.num_tokens
    k = check_whole_number("num_tokens", most if num_tokens is None else num_tokens, 1, most)
    batch = images_to_batch(images, size=tokenizer.image_size).to(tokenizer.device, tokenizer.dtype)
    return torch.cat([_refined(tokenizer, chunk, steps, k) for chunk in batch.split(CHUNK_ROWS)])


def _refined(tokenizer: CVQTokenizer, images: Float[Tensor, "B 3 H W"], steps: int, k: int) -> Int64[Tensor, "B k"]:
    first = tokenizer.tokenize(images)
    best, least = first.clone(), torch.full((len(images),), float("inf"), device=images.device)
    keep = (torch.arange(tokenizer.num_tokens, device=images.device) < k).expand(len(images), -1)
    with evaluating(tokenizer), torch.enable_grad():
        with torch.no_grad():
            z = tokenizer.encoder(images)
            scale = tokenizer.quantizer(z, keep).z_q.std()
        moved = torch.zeros_like(z, requires_grad=True)
        optimizer = torch.optim.Adam([moved], lr=RATE * float(scale))
        for _ in range(steps):
            quantized = tokenizer.quantizer(z + moved, keep)
            errors = (tokenizer.decoder(quantized.z_q) - images).square().mean((1, 2, 3))
            (moved.grad,) = torch.autograd.grad(errors.sum(), [moved])  # of the weights none is asked for
            optimizer.step()
            better = errors.detach() < least
            least = torch.where(better, errors.detach(), least)
            best[better] = quantized.indices[better]
    # Straight-through maps differ from codewords in last bits: what counts is what a reader decodes.
    found, start = best[:, :k], first[:, :k]
    return torch.where((_errors(tokenizer, found, images) < _errors(tokenizer, start, images))[:, None], found, start)


def _errors(
    tokenizer: CVQTokenizer, ids: Int64[Tensor, "B k"], images: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, " B"]:
    return (tokenizer.detokenize(ids, "tensor") - images).square().mean((1, 2, 3))
