"""Training a CVQTokenizer: pixel loss + quantization loss + nested channel dropout."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.optim import Optimizer

from channelvq.config import STRICT, when_given
from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.sizes import SizedMixture
from channelvq.data.split import Split
from channelvq.data.stream import (
    Mixture,
    Positions,
    Stream,
    distinct,
    fixed_images,
    num_pictures,
    position_generator,
)
from channelvq.distributed import rank
from channelvq.errors import InputError
from channelvq.evaluate.findings import usage_findings
from channelvq.evaluate.metrics import psnr
from channelvq.images import grid, normalize, save_image, to_pil, to_uint8
from channelvq.losses.reconstruction import PixelLoss, pixel_loss
from channelvq.nested import NestedConfig, draw_keep, keep_mask
from channelvq.quantize.axis import to_vectors
from channelvq.quantize.usage import CodebookUsage, UsageReport
from channelvq.registry import Registry
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from channelvq.train.config import check_start
from channelvq.train.progress import tell
from channelvq.train.stages import Sizes, StageConfig, all_sizes, check_sizes
from channelvq.train.task import Figures, Losses, Recipe, Task, tokenizer_optimizer

if TYPE_CHECKING:  # imported when a recipe asks for them
    from channelvq.losses.adversarial import AdversarialConfig
    from channelvq.losses.perceptual import PerceptualLossConfig
    from channelvq.losses.semantic import SemanticConfig
    from channelvq.train.adversary import Adversary
else:
    AdversarialConfig = PerceptualLossConfig = SemanticConfig = Any

_PERCEPTUAL = when_given("channelvq.losses.perceptual:PerceptualLossConfig")
_ADVERSARIAL = when_given("channelvq.losses.adversarial:AdversarialConfig")
_SEMANTIC = when_given("channelvq.losses.semantic:SemanticConfig")
MOST_AT_A_SIZE = 128  # validation images of each size that is not home
# By kind of network: what fits a new tokenizer, on every rank, to so many images of the training, with a seed.
Start = Callable[[CVQTokenizer, Callable[[int], Tensor], int], None]
STARTS: Registry[Start] = Registry("start of a network", {"linear": "channelvq.train.start:start_linear"})


@dataclass(frozen=True, config=STRICT)
class ObjectiveConfig:
    """Weights of the terms, and the plain codebook's care.

    pixel: how pixels are compared. pixel_weight: of that term. quantizer_weight: of the quantizer's own terms.
    start_step: the codebook enters at this step; before it the network trains without quantization. start_images: how
    many images' tokens its start is drawn from. codebook_lr_ratio: the codebook's learning rate over the network's.
    perceptual, adversarial: the loss on features, and a discriminator and its game, where there is to be one.
    semantic: the loss of the quantized latent against a frozen teacher, once the codebook has entered.
    start_from: a tokenizer (as for `from_pretrained`) of the same model, whose weights and codebook are the start; it
    may lack the resampler.
    """

    pixel: PixelLoss = "l2"
    pixel_weight: Annotated[float, Field(gt=0)] = 1.0
    quantizer_weight: Annotated[float, Field(ge=0)] = 1.0
    codebook_lr_ratio: Annotated[float, Field(gt=0)] = 1.0
    start_step: NonNegativeInt = 0
    start_images: PositiveInt = 512
    perceptual: Annotated[PerceptualLossConfig | None, _PERCEPTUAL] = None
    adversarial: Annotated[AdversarialConfig | None, _ADVERSARIAL] = None
    semantic: Annotated[SemanticConfig | None, _SEMANTIC] = None
    start_from: str | None = None


@dataclass(frozen=True, config=STRICT)
class TokenizerRecipe(Recipe):
    """Everything that decides a tokenizer's training.

    sizes: [height, width] of the images, those of a step all alike: the first size at the first step, and from the last
    one on to the first again. A size that comes twice gets twice the steps. null: model.image_size alone. growth: what
    the sizes become from a step on, a list of from_step and sizes.
    """

    task: Literal["tokenizer"] = "tokenizer"
    model: CVQConfig = field(default_factory=CVQConfig)
    nested: NestedConfig = field(default_factory=NestedConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sizes: Sizes | None = None
    growth: tuple[StageConfig, ...] | None = None

    def __post_init__(self) -> None:
        check_sizes(self.model, self.sizes, self.growth, self.train.steps, bool(self.train.compile))
        if self.objective.start_step >= self.train.steps:
            raise ValueError(
                f"objective.start_step {self.objective.start_step} must be below train.steps {self.train.steps}"
            )

    def build(self) -> "TokenizerTask":
        """What the loop trains."""
        return TokenizerTask(self)


def _first_tokenizer(recipe: TokenizerRecipe) -> CVQTokenizer:
    """New weights, or those of `objective.start_from`, whose codebook counts as started."""
    tokenizer = CVQTokenizer(recipe.model)
    if (source := recipe.objective.start_from) is None:
        return tokenizer
    given = CVQTokenizer.from_pretrained(source)
    config = given.config if given.resampler else replace(given.config, resampler=recipe.model.resampler)
    check_start(source, config, recipe.model)
    tokenizer.load_state_dict(tokenizer.state_dict() | given.state_dict())  # a new resampler changes nothing at home
    return tokenizer


class TokenizerTask(Task[TokenizerRecipe]):
    """An encoder, a quantizer and a decoder that restore images, with or without a discriminator against them."""

    def __init__(self, recipe: TokenizerRecipe) -> None:
        self.recipe = recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.train.seed)
            self.tokenizer = _first_tokenizer(recipe)
            self.adversary = None if recipe.objective.adversarial is None else self._adversary()
            self.meaning = (
                None
                if recipe.objective.semantic is None
                else recipe.objective.semantic.build(recipe.model.latent_channels)
            )
        self.models: dict[str, nn.Module] = {"tokenizer": self.tokenizer}
        if self.meaning is not None:  # a helper of the tokenizer's optimizer: in checkpoints, not in final/
            self.models["semantic_head"] = self.meaning.head
        # The codebook before its start; the resampler at the home size.
        self.idle_parameters = recipe.objective.start_step > 0 or recipe.model.resampler is not None
        quantizers, ratio = [self.tokenizer.quantizer], recipe.objective.codebook_lr_ratio
        optimizer = tokenizer_optimizer(self.models.values(), quantizers, recipe.train, ratio)
        self.optimizers: dict[str, Optimizer] = {"tokenizer": optimizer}
        self.networks: list[nn.Module] = [self.tokenizer.encoder, self.tokenizer.decoder]
        if recipe.objective.start_step > 0 and not any(list(network.parameters()) for network in self.networks):
            raise InputError(
                "objective.start_step: model.network has no weights to train before the codebook is there; set it to 0"
            )
        if self.adversary is not None:
            self.models["discriminator"] = self.adversary.discriminator
            self.optimizers["discriminator"] = self.adversary.optimizer
            self.networks += [self.adversary.discriminator] if self.adversary.compilable else []
        features = recipe.objective.perceptual
        self.perceptual = None if features is None else features.build()
        self.data = self._mixture(recipe.model.image_size)
        self.training: Positions = self.data if recipe.sizes is None else self._sized(recipe.sizes)
        # Read now: that validation images are missing or broken should not be found out after hours.
        held_out = self._mixture(recipe.model.image_size, "validation")
        self.held_out = fixed_images(held_out, recipe.data.validation_images)
        if self.held_out.ndim != 4:
            raise InputError("data.sources: kind clips is for recipes of task: clips; this one trains on pictures")
        self.distinct = distinct(self.held_out)
        self.held_out_pictures = num_pictures(held_out, len(self.held_out))
        self.held_out_at = {size: self._held_out_at(size) for size in all_sizes(recipe.sizes, recipe.growth)}
        self._alarmed: set[str] = set()

    def _mixture(self, side: int, split: Split = "train") -> Mixture:
        """Of square images; those of validation are the same for every seed of the training."""
        seed = Stream.IMAGES.seed(self.recipe.train.seed) if split == "train" else 0
        return build_mixture(self.recipe.data, side, split, seed)

    def _sized(self, sizes: Sequence[tuple[int, int]]) -> SizedMixture:
        seed, home = self.recipe.train.seed, self.recipe.model.image_size
        return SizedMixture(
            sizes, self.recipe.train.batch_size, Stream.IMAGES.seed(seed), Stream.PARTS.seed(seed),
            lambda side: self.data if side == home else self._mixture(side),
            {stage.from_step: stage.sizes for stage in self.recipe.growth or ()},
        )  # fmt: skip

    def _held_out_at(self, size: tuple[int, int]) -> Tensor:
        """Validation images of a size, uint8 (n, 3, H, W); those of the home size are `held_out`."""
        if size == (self.recipe.model.image_size,) * 2:
            return self.held_out
        images = SizedMixture([size], 1, 0, Stream.PARTS.seed(0), lambda side: self._mixture(side, "validation"))
        return fixed_images(images, min(MOST_AT_A_SIZE, self.recipe.data.validation_images))

    def _adversary(self) -> "Adversary":
        from channelvq.train.adversary import Adversary

        assert self.recipe.objective.adversarial is not None
        return Adversary(self.recipe.objective.adversarial, self.recipe.train)

    def start(self) -> None:
        """Read or fit first weights where the kind has some; start the codebook, unless the network trains first."""
        self.tokenizer.encoder.start()
        if (kind := self.recipe.model.network.kind) in STARTS:
            # The first images of the training sequence, which come again when it begins.
            STARTS[kind](self.tokenizer, lambda count: fixed_images(self.data, count), self.recipe.train.seed)
        if self.recipe.objective.start_step == 0:
            self._start_codebook()

    def _start_codebook(self) -> None:
        if bool(self.tokenizer.quantizer.quantizer.started):
            return
        count, size = self.recipe.objective.start_images, 32
        if rank() == 0:
            tell(f"start: a codebook for the tokens of {count} images, once")
        maps = []
        encoder = self.tokenizer.encoder
        encode = encoder if self.recipe.objective.start_step else encoder.first_maps
        with torch.no_grad():
            # The first images of the training sequence, which come again when it begins.
            for position in range(0, count, size):
                images = torch.stack([self.data[p].image for p in range(position, min(position + size, count))])
                maps.append(encode(normalize(images).to(self.tokenizer.device)).float())
        generator = torch.Generator().manual_seed(self.recipe.train.seed)
        self.tokenizer.quantizer.start_from(torch.cat(maps), generator)

    @contextmanager
    def survey(self, parts: Sequence[Tensor], step: int, first: int) -> Iterator[None]:
        """Let a quantizer that learns from the global batch see it: a pass of the encoder more, without gradients."""
        quantizer, start = self.tokenizer.quantizer.quantizer, self.recipe.objective.start_step
        if step == start and step > 0:
            self._start_codebook()
        if step >= start and quantizer.over_batch:
            with torch.no_grad():
                maps = [self.tokenizer.maps(normalize(part)) for part in parts]
            keep = [self._keep(len(part), step, first + i) for i, part in enumerate(parts)]
            keep = [None if mask is None else mask.to(maps[0].device) for mask in keep]
            vectors = [to_vectors(part, self.recipe.model.axis) for part in maps]
            quantizer.survey(vectors, keep, self.recipe.train.batch_size // len(parts[0]))
        try:
            yield
        finally:
            quantizer.global_batch = None

    def losses(self, name: str, models: dict[str, nn.Module], batch: Tensor, step: int, part: int) -> Losses:
        """Pixel and adversarial loss on the decoded prefix, quantization and semantic loss on the kept channels."""
        objective, x = self.recipe.objective, normalize(batch)
        if name == "discriminator" and self.adversary is not None:
            return self.adversary.losses(models[name], x, part)
        quantize = step >= objective.start_step
        if step == objective.start_step and step > 0:
            self._start_codebook()
        keep = self._keep(len(batch), step, part)
        x_hat, quantized = models[name](x, keep.to(x.device) if keep is not None else None, quantize=quantize)
        pixel = pixel_loss(x_hat.float(), x, objective.pixel)
        terms = {"pixel": objective.pixel_weight * pixel}
        if self.perceptual is not None and objective.perceptual is not None:
            distance = self.perceptual.to(x.device)(x_hat.float(), x).mean()
            terms["perceptual"] = objective.perceptual.weight * distance
        if self.adversary is not None:
            reconstruction, tokens = sum(terms.values(), start=x.new_zeros(())), self.tokenizer.num_tokens
            kept = torch.full((len(x_hat),), tokens) if keep is None else keep.sum(1)
            terms |= self.adversary.tokenizer_terms(
                x_hat.float(), reconstruction, self.tokenizer.decoder, kept, tokens, step, part
            )
        if quantized is not None and self.meaning is not None:
            # Of the prefix that is decoded: the first channels have to carry the meaning.
            terms["semantic"] = self.meaning.loss(models["semantic_head"], quantized.z_q, x)
        if quantized is not None:
            terms |= {key: objective.quantizer_weight * value for key, value in quantized.losses.items()}
        indices = None if quantized is None else quantized.indices
        return Losses(terms, lambda: self._figures(x, x_hat.detach().float(), indices))

    def _figures(self, x: Tensor, x_hat: Tensor, indices: Tensor | None) -> Figures:
        """PSNR of the batch as one image, and the share of the codes that came in it."""
        figures = {"psnr": 10 * float(torch.log10(4 / (x_hat - x).square().mean()))}
        if indices is not None:
            figures["batch_use"] = len(indices.unique()) / self.tokenizer.codebook_size
        return figures

    def _keep(self, batch: int, step: int, part: int) -> Tensor | None:
        config = self.recipe.nested
        if not config.active:
            return None
        tokens = self.tokenizer.num_tokens
        # The draw of an image depends on the step and its place in the global batch, not on the number of parts.
        generator = position_generator(Stream.HIDDEN.seed(self.recipe.train.seed), step)
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
        for (height, width), at_size in self.held_out_at.items():
            rows = tokenizer.tokenize(normalize(at_size), exact=False)
            there = to_uint8(tokenizer.detokenize(rows, "tensor", size=(height, width), exact=False)).cpu()
            figures[f"psnr_{height}x{width}"] = float(psnr(there, at_size).mean())
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
        findings = usage_findings(usage, self.tokenizer.codebook_size)
        new = [finding for finding in findings if finding.level != "note" and finding.name not in self._alarmed]
        self._alarmed |= {finding.name for finding in new}
        return [f"{finding.level}: {finding.name}: {finding.measured}. {finding.remedy}" for finding in new]
