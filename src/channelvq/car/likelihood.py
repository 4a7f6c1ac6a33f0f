"""What a generator thinks of given images: nats and accuracy by channel, told the truth or running on its own.

n images, T text slot, C channels; text is ids with -1 on padding, on the left.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from channelvq.car.model import CAR
from channelvq.errors import InputError
from channelvq.nn.modes import evaluating

ROWS = 32  # images in memory at a time


def encode_captions(car: CAR, captions: Sequence[str]) -> Int32[Tensor, "n T"]:
    """Captions in the text slot; raises InputError where one is too long."""
    text = car.text.encode(captions, car.config.max_text_tokens)
    return text.ids.masked_fill(~text.mask, -1).to(torch.int32)


def with_other_captions(text: Int[Tensor, "n T"], seed: int = 0) -> Int[Tensor, "n T"]:
    """The rows in another order in which none keeps its place: a random cycle through all of them."""
    order = torch.randperm(len(text), generator=torch.Generator().manual_seed(seed))
    other = text.clone()
    other[order] = text[order.roll(1)]
    return other


@torch.no_grad()
def teacher_forced(
    car: CAR, text: Int[Tensor, "n T"], ids: Int[Tensor, "n C"]
) -> tuple[Float[Tensor, "n C"], Float[Tensor, "n C"]]:
    """Nats of each true token after the true ones before it, and 1 where it is the likeliest."""
    nats, right = [], []
    with evaluating(car):
        for words, true in zip(text.long().split(ROWS), ids.long().split(ROWS), strict=True):
            words, true = words.to(car.device), true.to(car.device)
            predicted = car(words.clamp(min=0), words >= 0, true)
            nats.append(predicted.nats.cpu())
            right.append((predicted.logits.argmax(2) == true).float().cpu())
    return torch.cat(nats), torch.cat(right)


def free_running(
    car: CAR, captions: Sequence[str], ids: Int64[Tensor, "n C"], given: int
) -> Float[Tensor, "n C-given"]:
    """1 where the likeliest token after the model's own tokens, from channel `given` on, is the true one.

    Beside `teacher_forced` this shows what the model's own mistakes cost it (exposure bias).
    """
    if not 0 <= given < ids.shape[1]:
        raise InputError(f"given={given}: expected 0 to {ids.shape[1] - 1} of the {ids.shape[1]} tokens")
    prefix = ids[:, :given] if given else None
    own = car.generate(captions, temperature=0.0, guidance_scale=1.0, prefix_ids=prefix, exact=False).ids
    return (own.cpu() == ids)[:, given:].float()


def unigram_nats(ids: Int[Tensor, "n C"], train_ids: Int[Tensor, "m C"], codebook_size: int) -> Float[Tensor, "n C"]:
    """Nats of each token by how often its channel had it in training, with add-one smoothing: what no model need beat.

    A generator that has learned nothing but the channels' own habits reaches this.
    """
    columns = []
    for true, seen in zip(ids.long().unbind(1), train_ids.long().unbind(1), strict=True):
        counts = torch.bincount(seen, minlength=codebook_size).double() + 1.0
        columns.append(-(counts / counts.sum()).log()[true])
    return torch.stack(columns, 1).float()
