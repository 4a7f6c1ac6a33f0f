"""How well a generator predicts held-out images, channel by channel."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from channelvq.car.data import TokenSet
from channelvq.car.likelihood import encode_captions, free_running, teacher_forced, unigram_nats, with_other_captions
from channelvq.car.model import CAR
from channelvq.evaluate.metrics import mean_with_interval

FREE_IMAGES = 256
GIVEN = (0, 16, 32)  # true tokens that a free run begins with


@dataclass(frozen=True, eq=False)
class NextChannelReport:
    """By image and channel: nats with the right caption, with another one, by counts alone; accuracy, free and not.

    free: accuracy of the model on its own after so many true tokens, on the first images, by the channels that follow.
    """

    nats: Float[Tensor, "n C"]
    nats_shuffled: Float[Tensor, "n C"]
    nats_unigram: Float[Tensor, "n C"]
    right: Float[Tensor, "n C"]
    free: dict[int, Float[Tensor, "m _"]]

    def to_dict(self) -> dict[str, Any]:
        """Means, and lists with a number for each channel."""
        named = {"nats": self.nats, "nats_shuffled": self.nats_shuffled, "nats_unigram": self.nats_unigram}
        interval = mean_with_interval(self.nats.mean(1), seed=0)
        return {
            **{name: float(values.mean()) for name, values in named.items()},
            "nats_interval": [interval.low, interval.high],
            "top1": float(self.right.mean()),
            "num_images": len(self.nats),
            "by_channel": {
                **{name: values.mean(0).tolist() for name, values in named.items()},
                "top1": self.right.mean(0).tolist(),
                "free_running": {str(given): right.mean(0).tolist() for given, right in self.free.items()},
            },
            "free_running_images": min(FREE_IMAGES, len(self.nats)),
        }


def evaluate_next_channel(car: CAR, held_out: TokenSet, train_ids: Int[Tensor, "m C"]) -> NextChannelReport:
    """Measure a generator on held-out images in the ids of its tokenizer; train_ids: for the count-only baseline."""
    held_out, train_ids = held_out.first_tokens(car.num_tokens), train_ids[:, : car.num_tokens]
    text, ids = encode_captions(car, held_out.captions), held_out.ids
    nats, right = teacher_forced(car, text, ids)
    shuffled, _ = teacher_forced(car, with_other_captions(text), ids)
    captions, first = held_out.captions[:FREE_IMAGES], ids[:FREE_IMAGES].long()
    free = {k: free_running(car, captions, first, k) for k in GIVEN if k < ids.shape[1]}
    return NextChannelReport(nats, shuffled, unigram_nats(ids, train_ids, car.codebook_size), right, free)
