"""Training a ClipTokenizer: pixel loss over all frames + quantization losses + nested dropout in channels and time."""

from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Bool
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.optim import Optimizer

from channelvq.config import STRICT
from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.clips import ClipsConfig, with_frames
from channelvq.data.split import Split
from channelvq.data.stream import Mixture, Stream, fixed_images, position_generator
from channelvq.distributed import rank
from channelvq.errors import InputError
from channelvq.evaluate.clips import clip_psnr, flicker
from channelvq.images import grid, normalize, save_image, to_pil, to_uint8
from channelvq.losses.reconstruction import PixelLoss, pixel_loss
from channelvq.nested import NestedConfig, Share, draw_keep, keep_mask
from channelvq.quantize.usage import CodebookUsage
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.config import check_start
from channelvq.train.progress import tell
from channelvq.train.task import Figures, Losses, Recipe, Task, tokenizer_optimizer
from channelvq.video import ClipConfig, ClipTokenizer

SHOWN = 6  # clips on the sheet of an evaluation


@dataclass(frozen=True, config=STRICT)
class ClipObjectiveConfig:
    """Weights of the terms, what is dropped in time, and the codebooks' starts.

    pixel: how pixels are compared. pixel_weight: of that term. quantizer_weight: of the quantizers' own terms.
    codebook_lr_ratio: the codebooks' learning rate over the network's. time_alpha: probability that a clip has no
    tokens after its first t ~ U{1..G} groups, whose frames count all the same. whole_first: probability that a clip
    whose groups have lost channels keeps all of the first frame's. start_clips: how many clips' tokens the codebooks'
    starts are drawn from. start_from: an image tokenizer (as for `from_pretrained`) of the settings model.image, whose
    weights and codebook are the start.
    """

    pixel: PixelLoss = "l2"
    pixel_weight: Annotated[float, Field(gt=0)] = 1.0
    quantizer_weight: Annotated[float, Field(ge=0)] = 1.0
    codebook_lr_ratio: Annotated[float, Field(gt=0)] = 1.0
    time_alpha: Share = 0.1
    whole_first: Share = 0.5
    start_clips: PositiveInt = 128
    start_from: str | None = None


@dataclass(frozen=True, config=STRICT)
class ClipRecipe(Recipe):
    """Everything that decides the training of a tokenizer of clips; batch_size and validation_images count clips."""

    task: Literal["clips"] = "clips"
    model: ClipConfig = field(default_factory=ClipConfig)
    nested: NestedConfig = field(default_factory=NestedConfig)
    objective: ClipObjectiveConfig = field(default_factory=ClipObjectiveConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(sources={"clips": ClipsConfig()}))

    def __post_init__(self) -> None:
        if self.model.frames < 2:
            raise ValueError("model.frames: nothing changes in clips of one frame; use a recipe of task: tokenizer")

    def build(self) -> "ClipTask":
        """What the loop trains."""
        return ClipTask(self)


class ClipTask(Task[ClipRecipe]):
    """A ClipTokenizer that restores clips."""

    def __init__(self, recipe: ClipRecipe) -> None:
        self.recipe = recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.train.seed)
            self.tokenizer = _first_tokenizer(recipe)
        if (recipe.train.accumulation or 1) > 1 and self.tokenizer.motion_quantizer.quantizer.over_batch:
            raise InputError(
                f"train.accumulation: codebooks of kind {recipe.model.image.quantizer.kind} learn from all of a batch, "
                "which clips bring group by group; leave it out, or choose model.image.quantizer.kind=plain"
            )
        self.models: dict[str, nn.Module] = {"tokenizer": self.tokenizer}
        quantizers = (self.tokenizer.image.quantizer, self.tokenizer.motion_quantizer)
        optimizer = tokenizer_optimizer([self.tokenizer], quantizers, recipe.train, recipe.objective.codebook_lr_ratio)
        self.optimizers: dict[str, Optimizer] = {"tokenizer": optimizer}
        self.networks: list[nn.Module] = [self.tokenizer.image.encoder, self.tokenizer.image.decoder]
        self.training = self._mixture("train")
        self.held_out = fixed_images(self._mixture("validation"), recipe.data.validation_images)
        self._check_clips(self.held_out)

    def _check_clips(self, clips: Tensor) -> None:
        wanted = self.recipe.model.frames
        if clips.ndim != 5 or clips.shape[1] != wanted:
            given = f"clips of {clips.shape[1]} frames" if clips.ndim == 5 else "pictures"
            raise InputError(f"data.sources: expected clips of {wanted} frames (model.frames), kind clips; got {given}")

    def _mixture(self, split: Split) -> Mixture:
        """Those of validation are the same for every seed of the training."""
        sources = {
            name: with_frames(source, self.recipe.model.frames) if isinstance(source, ClipsConfig) else source
            for name, source in self.recipe.data.sources.items()
        }
        seed = Stream.IMAGES.seed(self.recipe.train.seed) if split == "train" else 0
        return build_mixture(
            replace(self.recipe.data, sources=sources), self.recipe.model.image.image_size, split, seed
        )

    @torch.no_grad()
    def start(self) -> None:
        """Read the encoder's weights where it has some; start both codebooks from the first clips of the training."""
        tokenizer, count = self.tokenizer, self.recipe.objective.start_clips
        tokenizer.image.encoder.start()
        if rank() == 0:
            tell(f"start: codebooks for the tokens of {count} clips, once")
        maps = []
        for position in range(count):
            clip = normalize(self.training[position].image).to(tokenizer.device)
            maps.append(tokenizer.image.maps(clip).float())
        z = torch.stack(maps)
        seeds = [torch.Generator().manual_seed(self.recipe.train.seed) for _ in range(2)]
        if not bool(tokenizer.image.quantizer.quantizer.started):
            tokenizer.image.quantizer.start_from(z[:, 0], seeds[0])
        if not bool(tokenizer.motion_quantizer.quantizer.started):
            tokenizer.motion_quantizer.start_from(tokenizer.changes(z), seeds[1])

    def losses(self, name: str, models: dict[str, nn.Module], batch: Tensor, step: int, part: int) -> Losses:
        """Pixel loss on all frames, quantization losses on the kept tokens."""
        objective, x = self.recipe.objective, normalize(batch)
        x_hat, coded = models[name](x, self._keep(len(batch), step, part).to(x.device))
        terms = {"pixel": objective.pixel_weight * pixel_loss(x_hat.float(), x, objective.pixel)}
        terms |= {key: objective.quantizer_weight * value for key, value in coded.losses.items()}
        return Losses(terms, lambda: self._figures(x, x_hat.detach().float(), coded.indices))

    def _figures(self, x: Tensor, x_hat: Tensor, indices: Tensor) -> Figures:
        """PSNR of the batch as one image, and the shares of the codes of first frames and of changes that came."""
        size = self.tokenizer.codebook_size
        return {
            "psnr": 10 * float(torch.log10(4 / (x_hat - x).square().mean())),
            "batch_use": len(indices[:, 0].unique()) / size,
            "batch_use_changes": len(indices[:, 1:].unique()) / size,
        }

    def _keep(self, clips: int, step: int, part: int) -> Bool[Tensor, "b G C"]:
        """Tokens that stay; what is drawn for a clip depends on the step and its place in the global batch."""
        config, objective, train = self.recipe.nested, self.recipe.objective, self.recipe.train
        tokens, groups = self.tokenizer.num_tokens, self.recipe.model.num_groups(self.recipe.model.frames)
        generator = position_generator(Stream.HIDDEN.seed(train.seed), step)
        channels = draw_keep(config, train.batch_size, tokens, generator, step / train.steps)
        keep = keep_mask(channels, tokens)[:, None].expand(-1, groups, -1).clone()
        keep[torch.rand(train.batch_size, generator=generator) < objective.whole_first, 0] = True
        cut = torch.rand(train.batch_size, generator=generator) < objective.time_alpha
        drawn = torch.randint(1, groups + 1, (train.batch_size,), generator=generator)
        keep &= keep_mask(torch.where(cut, drawn, groups), groups)[:, :, None]
        return keep[part * clips : (part + 1) * clips]

    @torch.no_grad()
    def evaluate(self, models: dict[str, nn.Module], run_dir: Path, step: int) -> Figures:
        """Held-out PSNR and flicker by prefix, use of both codebooks; clips over what is restored in samples/."""
        tokenizer, clips = models["tokenizer"], self.held_out
        assert isinstance(tokenizer, ClipTokenizer)
        frames, tokens = clips.shape[1], tokenizer.num_tokens
        ids = tokenizer.tokenize(normalize(clips), exact=False).cpu()
        figures: Figures = {}
        for name, part in (("", ids[:, 0]), ("_changes", ids[:, 1:].flatten(0, 1))):
            usage = CodebookUsage(tokenizer.codebook_size)
            usage.update(part)
            result = usage.result()
            figures |= {f"use{name}": result.use, f"perplexity{name}": result.perplexity}
        restored = clips
        shorter = (max(1, tokens // 16), max(1, tokens // 4)) if self.recipe.nested.active else ()
        for k in sorted({tokens, *shorter}):
            restored = to_uint8(tokenizer.detokenize(ids[:, :, :k], frames=frames, exact=False)).cpu()
            figures[f"psnr_{k}"] = float(clip_psnr(restored, clips).mean())
            figures[f"flicker_{k}"] = float(flicker(restored, clips).mean())
        figures["psnr_first"] = float(clip_psnr(restored[:, :1], clips[:, :1]).mean())
        rows = [frame for pair in zip(clips[:SHOWN], restored[:SHOWN], strict=True) for frame in torch.cat(pair)]
        sheet = grid(to_pil(torch.stack(rows)), columns=frames)
        save_image(sheet, run_dir / "samples" / f"step-{step:08d}.png")
        return figures


def _first_tokenizer(recipe: ClipRecipe) -> ClipTokenizer:
    """New weights, the image tokenizer's those of `objective.start_from` where there is one."""
    tokenizer = ClipTokenizer(recipe.model)
    if (source := recipe.objective.start_from) is not None:
        given = CVQTokenizer.from_pretrained(source)
        check_start(source, given.config, recipe.model.image)
        tokenizer.image.load_state_dict(given.state_dict())
    return tokenizer
