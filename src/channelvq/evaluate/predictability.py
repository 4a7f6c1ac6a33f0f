"""How easily a tokenizer's tokens are predicted: nats of a small model that is always the same, beside the counts'.

Quality alone does not say what a generator can do with tokens: codes that are nearly independent and use all their bits
restore best and are hardest to predict. The predictor knows nothing but the tokens before: no captions.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from channelvq.car.config import CARConfig
from channelvq.car.likelihood import teacher_forced, unigram_nats
from channelvq.car.model import CAR
from channelvq.car.text import NUM_BYTES, TextTokenizer, train_bpe
from channelvq.errors import InputError
from channelvq.evaluate.metrics import mean_with_interval
from channelvq.nn.modes import evaluating
from channelvq.tokenizer import CVQTokenizer

BACKBONE = {
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 384,
}  # fmt: skip
STEPS, BATCH, RATE, SEED = 300, 32, 3e-3, 0
LEAST = 256  # images to learn from
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Predictability:
    """Means over held-out images and channels, in nats a token; times `tokens` an image's.

    nats_interval: 95 % over images. nats_counts: by how often each code comes at each place. by_channel: nats of each.
    train_images, steps: what the predictor learned from, and for how long.
    """

    nats: float
    nats_interval: tuple[float, float]
    nats_counts: float
    by_channel: list[float]
    tokens: int
    images: int
    train_images: int
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def predictability(
    tokenizer: CVQTokenizer, train: Int[Tensor, "m C"], held_out: Int[Tensor, "n C"], *,
    steps: int = STEPS, progress: Progress = lambda *_: None,
) -> Predictability:  # fmt: skip
    """Train the predictor on ids of the tokenizer and measure it on others; the same figures for the same ids.

    progress: told (done, of how many) steps. Raises InputError for fewer images than LEAST to learn from, or fewer than
    2 to measure.
    """
    if len(train) < LEAST or len(held_out) < 2:
        raise InputError(
            f"nats: {len(train)} images to learn from and {len(held_out)} to measure; expected {LEAST} and 2 at least"
        )
    model = _predictor(tokenizer, train, steps, progress)
    nats, _ = teacher_forced(model, held_out.new_full((len(held_out), 1), -1), held_out)
    interval = mean_with_interval(nats.mean(1), seed=SEED)
    counts: Float[Tensor, "n C"] = unigram_nats(held_out, train, tokenizer.codebook_size)
    return Predictability(
        nats=float(nats.mean()), nats_interval=(interval.low, interval.high), nats_counts=float(counts.mean()),
        by_channel=nats.mean(0).tolist(), tokens=tokenizer.num_tokens, images=len(held_out), train_images=len(train),
        steps=steps,
    )  # fmt: skip


def _predictor(tokenizer: CVQTokenizer, train: Int[Tensor, "m C"], steps: int, progress: Progress) -> CAR:
    """A CAR without captions, trained by AdamW; nothing outside of it changes, random numbers included."""
    text = TextTokenizer(train_bpe([""], NUM_BYTES))
    generator = torch.Generator().manual_seed(SEED)
    config = CARConfig(backbone=BACKBONE, max_text_tokens=1, head_start="codebook")
    model = CAR(config, deepcopy(tokenizer), text, generator=generator).to(tokenizer.device)  # a copy: CAR freezes it
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    nothing = torch.zeros(BATCH, 1, dtype=torch.int64, device=model.device)
    with evaluating(model):  # there is no dropout in it
        for step in range(steps):
            rows = torch.randint(len(train), (BATCH,), generator=generator)
            ids = train[rows].long().to(model.device)
            loss = model(nothing, nothing.bool(), ids).nats.mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            schedule.step()
            progress(step + 1, steps)
    return model
