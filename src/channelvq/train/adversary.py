"""A discriminator against a tokenizer: what each side learns from, and what has to be kept between their updates."""

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from channelvq.distributed import num_ranks, sum_over_ranks
from channelvq.losses.adversarial import (
    AdversarialConfig,
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    lecam,
    prefix_weights,
    r1_penalty,
    ramp,
)
from channelvq.nn.networks import Decoder
from channelvq.train.config import TrainConfig
from channelvq.train.task import Losses


class Adversary:
    """The game of a tokenizer's training; its weights are drawn from torch's global generator."""

    def __init__(self, config: AdversarialConfig, train: TrainConfig) -> None:
        self.config = config
        self.parts = train.accumulation or 1
        self.discriminator = PatchDiscriminator(config)
        self.optimizer: Optimizer = AdamW(
            self.discriminator.parameters(),
            train.learning_rate * config.lr_ratio,
            train.betas,
            weight_decay=train.weight_decay,
        )
        self._restored: dict[int, tuple[Tensor, Tensor]] = {}  # this step's reconstructions and their weights, by part
        self._logits: list[Tensor] = []  # means of real and fake ones, of each part of this step

    @property
    def compilable(self) -> bool:
        """A compiled network has no second derivative, which R1 takes."""
        return not self.config.r1

    def tokenizer_terms(
        self,
        x_hat: Tensor,
        reconstruction: Tensor,
        decoder: Decoder,
        kept: Tensor,
        tokens: int,
        step: int,
        part: int,
    ) -> dict[str, Tensor]:
        """The tokenizer's side, nothing before the game begins.

        kept: (b,) of how many of its `tokens` each image was decoded.
        """
        if (share := ramp(self.config, step)) == 0:
            return {}
        weights = prefix_weights(self.config, kept, tokens).to(x_hat.device)
        self._restored[part] = (x_hat.detach(), weights)
        # Held still, or the discriminator's own step would feel these gradients.
        self.discriminator.requires_grad_(False)
        loss = hinge_generator(self.discriminator(x_hat), weights)
        self.discriminator.requires_grad_(True)
        balance = adaptive_weight(reconstruction, loss, decoder.last_weight) if self.config.adaptive else 1.0
        return {"adversarial": share * self.config.weight * balance * loss}

    def losses(self, model: nn.Module, x: Tensor, part: int) -> Losses:
        """The discriminator's side, on the reconstructions that the tokenizer has just been judged by.

        model: the discriminator, possibly wrapped.
        """
        if part not in self._restored:
            return Losses({})
        x_hat, weights = self._restored.pop(part)
        real, fake = model(torch.cat([x, x_hat])).chunk(2)
        terms = {"discriminator": hinge_discriminator(real, fake, weights)}
        if self.config.r1:
            terms["r1"] = self.config.r1 * r1_penalty(self.discriminator, x)
        if self.config.lecam:
            terms["lecam"] = self.config.lecam * lecam(self.discriminator, real, fake)
        self._note(real, fake)
        means = {"logit_real": real.detach().mean(), "logit_fake": fake.detach().mean()}
        return Losses(terms, lambda: {key: float(mean) for key, mean in means.items()})

    @torch.no_grad()
    def _note(self, real: Tensor, fake: Tensor) -> None:
        """LeCam's averages move once a step, by the means over the global batch."""
        self._logits.append(torch.stack([real.mean(), fake.mean()]))
        if len(self._logits) == self.parts:
            mean = sum_over_ranks(torch.stack(self._logits).mean(0)) / num_ranks()
            self.discriminator.note(mean[0], mean[1])
            self._logits.clear()
