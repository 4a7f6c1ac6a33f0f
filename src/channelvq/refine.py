"""Ids chosen by the error of the picture that they give, not by the distance of each codeword.

z + d -> quantizer -> decoder -> picture;  d -> argmin ||picture - image||^2 by Adam, gradients straight through

Analysis by synthesis of one image at a time, at the cost of `steps` decodings and their gradients. The decoder stays as
it is, so whoever has the tokenizer reads the ids. Campos et al. 2019, arXiv 1906.01223, do it with a learned codec.
"""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from channelvq.checks import check_whole_number
from channelvq.images import ImageInput, images_to_list
from channelvq.nn.modes import evaluating, in_chunks_by_size
from channelvq.quantize.axis import to_vectors
from channelvq.tokenizer import CVQTokenizer

RATE = 0.03  # of Adam, in standard deviations of an image's codewords; 0.01 and 0.1 gave less on photographs


def refine_ids(
    tokenizer: CVQTokenizer,
    images: ImageInput | Sequence[ImageInput],
    *,
    steps: int = 30,
    num_tokens: int | None = None,
) -> Int64[Tensor, "B k"]:
    """Ids whose picture is as near to the image as `tokenize`'s, mean square over pixels, or nearer.

    images: all that `CVQTokenizer.tokenize` takes, as that takes it. num_tokens: the length that it is to be good at
    (default: all). Unlike with `tokenize`, a close call may fall another way beside other images.
    """
    check_whole_number("steps", steps, 0)
    most = tokenizer.num_tokens
    k = check_whole_number("num_tokens", most if num_tokens is None else num_tokens, 1, most)
    with torch.inference_mode(False):
        # Half precision has no room for the squared gradients of Adam, nor for small differences of errors.
        model = tokenizer if tokenizer.dtype.itemsize > 2 else copy.deepcopy(tokenizer).float()
        pictures = [x.to(model.device, model.dtype) for x in images_to_list(images, tokenizer.config.read_at)]
        return in_chunks_by_size(
            lambda chunk: _refined(tokenizer, model, chunk.clone(), steps, k), pictures,
            rows=tokenizer.rows_at_once, exact=False,
        )  # fmt: skip


def _refined(
    tokenizer: CVQTokenizer, model: CVQTokenizer, images: Float[Tensor, "B 3 H W"], steps: int, k: int
) -> Int64[Tensor, "B k"]:
    first = tokenizer.tokenize(images)
    best, least = first.clone(), torch.full((len(images),), float("inf"), device=images.device)
    keep = (torch.arange(tokenizer.num_tokens, device=images.device) < k).expand(len(images), -1)
    size = (images.shape[2], images.shape[3])
    with evaluating(model), torch.enable_grad():
        with torch.no_grad():
            z = model.maps(images)
            codes = to_vectors(model.quantizer(z, keep).z_q, model.config.axis)[:, :k]
            scale = codes.flatten(1).std(1).view(-1, 1, 1, 1)
        moved = torch.zeros_like(z, requires_grad=True)
        optimizer = torch.optim.Adam([moved], lr=RATE)
        for _ in range(steps):
            quantized = model.quantizer(z + scale * moved, keep)
            errors = (model.painted(quantized.z_q, size) - images).square().mean((1, 2, 3))
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
    size = (images.shape[2], images.shape[3])
    return (tokenizer.detokenize(ids, "tensor", size=size).float() - images.float()).square().mean((1, 2, 3))
