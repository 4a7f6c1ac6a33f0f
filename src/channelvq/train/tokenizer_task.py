"""Training a CVQTokenizer: pixel loss + quantization loss + nested channel dropout."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from channelvq.config import STRICT
from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.stream import distinct, fixed_images, position_generator, training_batches
from channelvq.evaluate.doctor_findings import usage_findings
from channelvq.evaluate.metrics import psnr
from channelvq.images import grid, normalize, save_image, to_pil, to_uint8
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
from channelvq.losses.perceptual import PerceptualLossConfig, build_perceptual
from channelvq.losses.reconstruction import PixelLoss, pixel_loss
from channelvq.losses.semantic import SemanticConfig, SemanticHead, build_teacher, semantic_loss
from channelvq.nested import NestedConfig, draw_keep, keep_mask
from channelvq.nn.linear import LinearEncoder
from channelvq.nn.vit import ViTEncoder
from channelvq.quantize.axis import to_vectors
from channelvq.quantize.base import num_ranks, sum_over_ranks
from channelvq.quantize.usage import CodebookUsage, UsageReport
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from channelvq.train.config import TrainConfig, check_start
from channelvq.train.start import start_linear


@dataclass(frozen=True, config=STRICT)
class ObjectiveConfig:
    """Weights of the terms, and the plain codebook's care.

    start_step: the codebook enters at this step; before it the network trains without quantization. start_images: how
    many images' tokens its start is drawn from. codebook_lr_ratio: the codebook's learning rate over the network's.
    perceptual, adversarial: the loss on features, and a discriminator and its game, where there is to be one.
    semantic: the loss of the quantized latent against a frozen teacher, once the codebook has entered.
    start_from: a tokenizer (as for `from_pretrained`) of the same model, whose weights and codebook are the start.
    """

    pixel: PixelLoss = "l2"
    pixel_weight: Annotated[float, Field(gt=0)] = 1.0
    quantizer_weight: Annotated[float, Field(ge=0)] = 1.0
    codebook_lr_ratio: Annotated[float, Field(gt=0)] = 1.0
    start_step: NonNegativeInt = 0
    start_images: PositiveInt = 512
    perceptual: PerceptualLossConfig | None = None
    adversarial: AdversarialConfig | None = None
    semantic: SemanticConfig | None = None
    start_from: str | None = None


@dataclass(frozen=True, config=STRICT)
class TokenizerRecipe:
    """Everything that decides a tokenizer's training."""

    task: Literal["tokenizer"] = "tokenizer"
    model: CVQConfig = field(default_factory=CVQConfig)
    nested: NestedConfig = field(default_factory=NestedConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.objective.start_step >= self.train.steps:
            raise ValueError(
                f"objective.start_step {self.objective.start_step} must be below train.steps {self.train.steps}"
            )


def _first_tokenizer(recipe: TokenizerRecipe) -> CVQTokenizer:
    """New weights, or those of `objective.start_from`, whose codebook counts as started."""
    tokenizer = CVQTokenizer(recipe.model)
    if (source := recipe.objective.start_from) is None:
        return tokenizer
    given = CVQTokenizer.from_pretrained(source)
    check_start(source, given.config, recipe.model)
    tokenizer.load_state_dict(given.state_dict())
    return tokenizer


class TokenizerTask:
    """Implements `channelvq.train.engine.Task`."""

    def __init__(self, recipe: TokenizerRecipe) -> None:
        self.recipe = recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.train.seed)
            self.tokenizer = _first_tokenizer(recipe)
            game = recipe.objective.adversarial
            self.discriminator = None if game is None else PatchDiscriminator(game)
            meaning = recipe.objective.semantic
            self.teacher = None if meaning is None else build_teacher(meaning)
            features = 0 if self.teacher is None else self.teacher.num_features
            head = SemanticHead(recipe.model.latent_channels, features) if features else None
        self.models: dict[str, nn.Module] = {"tokenizer": self.tokenizer}
        if head is not None:  # a helper of the tokenizer's optimizer: in checkpoints, not in final/
            self.models["semantic_head"] = head
        self.idle_parameters = recipe.objective.start_step > 0  # the codebook before its start
        self.optimizers: dict[str, Optimizer] = {"tokenizer": self._optimizer()}
        if game is not None and self.discriminator is not None:
            self.models["discriminator"] = self.discriminator
            rate = recipe.train.learning_rate * game.lr_ratio
            self.optimizers["discriminator"] = AdamW(
                self.discriminator.parameters(), rate, recipe.train.betas, weight_decay=recipe.train.weight_decay
            )
        features = recipe.objective.perceptual
        self.perceptual = None if features is None else build_perceptual(features)
        self.networks: list[nn.Module] = [self.tokenizer.encoder, self.tokenizer.decoder]
        if self.discriminator is not None and game is not None and not game.r1:
            self.networks.append(self.discriminator)  # a compiled network has no second derivative, which R1 takes
        self._restored: dict[int, tuple[Tensor, Tensor]] = {}  # this step's reconstructions, and their weights, by part
        self._logits: list[Tensor] = []  # means of real and fake ones, of each part of this step
        self.data = build_mixture(recipe.data, recipe.model.image_size, "train", recipe.train.seed)
        # Read now: that validation images are missing or broken should not be found out after hours.
        held_out = build_mixture(recipe.data, recipe.model.image_size, "validation", seed=0)
        self.held_out = fixed_images(held_out, recipe.data.validation_images)
        self.distinct = distinct(self.held_out)
        self._alarmed: set[str] = set()

    def _optimizer(self) -> Optimizer:
        train, ratio = self.recipe.train, self.recipe.objective.codebook_lr_ratio
        codebook = list(self.tokenizer.quantizer.parameters())
        network = [*self.tokenizer.encoder.parameters(), *self.tokenizer.decoder.parameters()]
        if "semantic_head" in self.models:
            network += self.models["semantic_head"].parameters()
        groups = [
            {"params": network, "weight_decay": train.weight_decay},
            # Decay would pull unused codewords to zero, where the first winner takes all.
            {"params": codebook, "weight_decay": 0.0, "lr": train.learning_rate * ratio},
        ]
        return AdamW(groups, lr=train.learning_rate, betas=train.betas)

    def start(self) -> None:
        """Read or fit the encoder's weights where it has some; start the codebook, unless the network trains first."""
        encoder = self.tokenizer.encoder
        if isinstance(encoder, LinearEncoder) and not encoder.linear.placed:
            # The first images of the training sequence, which come again when it begins.
            start_linear(self.tokenizer, fixed_images(self.data, encoder.config.start_images), self.recipe.train.seed)
        if isinstance(encoder, ViTEncoder) and encoder.config.weights is not None:
            encoder.load_weights(encoder.config.weights)
        if self.recipe.objective.start_step == 0:
            self._start_codebook()

    def _start_codebook(self) -> None:
        if bool(self.tokenizer.quantizer.quantizer.started):
            return
        count, size = self.recipe.objective.start_images, 32
        maps = []
        with torch.no_grad():
            # The first images of the training sequence, which come again when it begins.
            for position in range(0, count, size):
                images = torch.stack([self.data[p].image for p in range(position, min(position + size, count))])
                maps.append(self.tokenizer.encoder(normalize(images).to(self.tokenizer.device)).float())
        generator = torch.Generator().manual_seed(self.recipe.train.seed)
        self.tokenizer.quantizer.start_from(torch.cat(maps), generator)

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[Tensor]:
        """uint8 images."""
        train = self.recipe.train
        return training_batches(
            self.data, train.batch_size, start_step, train.steps, rank=rank, world=world, workers=train.data_workers
        )

    @contextmanager
    def survey(self, parts: Sequence[Tensor], step: int, first: int) -> Iterator[None]:
        """Let a quantizer that learns from the whole batch see it: a pass of the encoder more, without gradients."""
        quantizer, start = self.tokenizer.quantizer.quantizer, self.recipe.objective.start_step
        if step == start and step > 0:
            self._start_codebook()
        if step >= start and quantizer.over_batch:
            with torch.no_grad():
                maps = [self.tokenizer.encoder(normalize(part)) for part in parts]
            keep = [self._keep(len(part), step, first + i) for i, part in enumerate(parts)]
            keep = [None if each is None else each.to(maps[0].device) for each in keep]
            vectors = [to_vectors(each, self.recipe.model.axis) for each in maps]
            quantizer.survey(vectors, keep, self.recipe.train.batch_size // len(parts[0]))
        try:
            yield
        finally:
            quantizer.whole = None

    def losses(
        self, name: str, models: dict[str, nn.Module], batch: Tensor, step: int, part: int
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Pixel and adversarial loss on the decoded prefix, quantization and semantic loss on the kept channels."""
        objective, x = self.recipe.objective, normalize(batch)
        if name == "discriminator":
            return self._discriminator_losses(models[name], x, part)
        quantize = step >= objective.start_step
        if step == objective.start_step and step > 0:
            self._start_codebook()
        keep = self._keep(len(batch), step, part)
        x_hat, quantized = models[name](x, keep.to(x.device) if keep is not None else None, quantize=quantize)
        pixel = pixel_loss(x_hat.float(), x, objective.pixel)
        terms = {"pixel": objective.pixel_weight * pixel}
        figures = {"psnr": 10 * float(torch.log10(4 / (x_hat.detach().float() - x).square().mean()))}
        if self.perceptual is not None and objective.perceptual is not None:
            distance = self.perceptual.to(x.device)(x_hat.float(), x).mean()
            terms["perceptual"] = objective.perceptual.weight * distance
        if self.discriminator is not None:
            reconstruction = sum(terms.values(), start=x.new_zeros(()))
            terms |= self._adversarial_terms(x_hat.float(), reconstruction, keep, step, part)
        if quantized is not None:
            terms |= self._semantic_terms(models, quantized.z_q, x)
            terms |= {key: objective.quantizer_weight * value for key, value in quantized.losses.items()}
            figures["batch_use"] = len(quantized.indices.unique()) / self.tokenizer.codebook_size
        return terms, figures

    def _semantic_terms(self, models: dict[str, nn.Module], z_q: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Of the prefix that is decoded: the first channels have to carry the meaning."""
        meaning = self.recipe.objective.semantic
        if meaning is None or self.teacher is None:
            return {}
        predicted = models["semantic_head"](z_q)
        return {"semantic": meaning.weight * semantic_loss(predicted, self.teacher.to(x.device)(x))}

    def _adversarial_terms(
        self, x_hat: Tensor, reconstruction: Tensor, keep: Tensor | None, step: int, part: int
    ) -> dict[str, Tensor]:
        """The tokenizer's side of the game. The discriminator is held still, or its own step would feel this one."""
        game, tokens = self.recipe.objective.adversarial, self.tokenizer.num_tokens
        assert game is not None
        assert self.discriminator is not None
        if (share := ramp(game, step)) == 0:
            return {}
        kept = torch.full((len(x_hat),), tokens) if keep is None else keep.sum(1)
        weights = prefix_weights(game, kept, tokens).to(x_hat.device)
        self._restored[part] = (x_hat.detach(), weights)
        self.discriminator.requires_grad_(False)
        loss = hinge_generator(self.discriminator(x_hat), weights)
        self.discriminator.requires_grad_(True)
        balance = adaptive_weight(reconstruction, loss, self.tokenizer.decoder.last_weight) if game.adaptive else 1.0
        return {"adversarial": share * game.weight * balance * loss}

    def _discriminator_losses(
        self, model: nn.Module, x: Tensor, part: int
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """On the reconstructions that the tokenizer has just been judged by; nothing before the game begins."""
        game, discriminator = self.recipe.objective.adversarial, self.discriminator
        assert game is not None
        assert discriminator is not None
        if part not in self._restored:
            return {}, {}
        x_hat, weights = self._restored.pop(part)
        real, fake = model(torch.cat([x, x_hat])).chunk(2)
        terms = {"discriminator": hinge_discriminator(real, fake, weights)}
        if game.r1:
            terms["r1"] = game.r1 * r1_penalty(discriminator, x)
        if game.lecam:
            terms["lecam"] = game.lecam * lecam(discriminator, real, fake)
        self._note(real, fake)
        return terms, {"logit_real": float(real.detach().mean()), "logit_fake": float(fake.detach().mean())}

    @torch.no_grad()
    def _note(self, real: Tensor, fake: Tensor) -> None:
        """LeCam's averages move once a step, by the means over the global batch."""
        assert self.discriminator is not None
        self._logits.append(torch.stack([real.mean(), fake.mean()]))
        if len(self._logits) == (self.recipe.train.accumulation or 1):
            mean = sum_over_ranks(torch.stack(self._logits).mean(0)) / num_ranks()
            self.discriminator.note(mean[0], mean[1])
            self._logits.clear()

    def _keep(self, batch: int, step: int, part: int) -> Tensor | None:
        config = self.recipe.nested
        if not config.active:
            return None
        tokens = self.tokenizer.num_tokens
        # The draw of an image depends on the step and its place in the global batch, not on the number of parts.
        generator = position_generator(self.recipe.train.seed + 1, step)
        progress = step / self.recipe.train.steps
        everyone = draw_keep(config, self.recipe.train.batch_size, tokens, generator, progress)
        return keep_mask(everyone[part * batch : (part + 1) * batch], tokens)

    @torch.no_grad()
    def evaluate(self, models: dict[str, nn.Module], run_dir: Path, step: int) -> dict[str, float]:
        """Held-out PSNR by prefix and codebook use; a grid of originals over reconstructions in samples/."""
        tokenizer, images = models["tokenizer"], self.held_out
        assert isinstance(tokenizer, CVQTokenizer)
        if step <= self.recipe.objective.start_step:
            return {}
        ids = tokenizer.tokenize(normalize(images), exact=False)
        usage = CodebookUsage(tokenizer.codebook_size)
        usage.update(ids[self.distinct].cpu())
        result = usage.result()
        figures = {"use": result.use, "perplexity": result.perplexity, "use_if_uniform": result.use_if_uniform}
        nested = self.recipe.nested.active
        restored = images
        for k in sorted(
            {tokenizer.num_tokens, *((tokenizer.num_tokens // 16, tokenizer.num_tokens // 4) if nested else ())}
        ):
            restored = to_uint8(tokenizer.detokenize(ids[:, : max(1, k)], "tensor", exact=False)).cpu()
            figures[f"psnr_{max(1, k)}"] = float(psnr(restored, images).mean())
        shown = torch.cat([images[:16], restored[:16]])
        save_image(grid(to_pil(normalize(shown)), columns=16, scale=2), run_dir / "samples" / f"step-{step:08d}.png")
        return figures

    def alarms(self, figures: dict[str, float]) -> list[str]:
        """What `cvq doctor` would say of the codebook's use, the first time that it says so."""
        if "use" not in figures:
            return []
        usage = UsageReport(
            use=figures["use"],
            perplexity=figures["perplexity"],
            perplexity_ratio=figures["perplexity"] / self.tokenizer.codebook_size,
            use_if_uniform=figures["use_if_uniform"],
            tokens=len(self.distinct) * self.tokenizer.num_tokens,
        )
        found = [each for each in usage_findings(usage, self.tokenizer.codebook_size) if each.level != "note"]
        new = [each for each in found if each.name not in self._alarmed]
        self._alarmed |= {each.name for each in new}
        return [f"{each.level}: {each.name}: {each.measured}. {each.remedy}" for each in new]

    def save(self, models: dict[str, nn.Module], folder: Path) -> None:
        """config.json, model.safetensors and README.md."""
        tokenizer = models["tokenizer"]
        assert isinstance(tokenizer, CVQTokenizer)
        tokenizer.save_pretrained(folder)
