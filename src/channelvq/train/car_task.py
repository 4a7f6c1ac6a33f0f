"""Training CAR on ids: a language model of the captions first, then the image parts alone, then everything.

    steps  0 .. lm_steps            the backbone learns the captions as text, so that stage 1 freezes what knows words
           .. + stage1_steps        stage I of the paper: projector, marker and head; the backbone is frozen
           .. train.steps           stage II: all of it, the backbone with its own learning rate

The step decides the stage, the images, their order and which captions are hidden, so a run resumes exactly.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import field, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Int32
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from channelvq.car.backbone import (
    TRIED_UP_TO,
    build_backbone,
    named_config,
    recompute_layers,
    settings_of,
    use_plain_attention,
)
from channelvq.car.config import CARConfig
from channelvq.car.data import TokenSet, stored, tokenized, tokenizer_digest
from channelvq.car.likelihood import ROWS, encode_captions, teacher_forced, with_other_captions
from channelvq.car.model import CAR, Prediction
from channelvq.car.packing import check_packing, packed_rows
from channelvq.car.text import NUM_BYTES, TextTokenizer, train_bpe
from channelvq.config import STRICT, digest
from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.files.tokens import TokensConfig
from channelvq.data.split import Split
from channelvq.data.stream import Stream, position_generator, rank_share, row_at
from channelvq.errors import InputError
from channelvq.images import grid, save_image
from channelvq.nn.modes import evaluating
from channelvq.pretrained import tensor_sha256
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.checkpoint import check_inputs
from channelvq.train.config import check_start
from channelvq.train.launch import on_gpu
from channelvq.train.lora import LoRAConfig, add_low_rank, merged, trained_of
from channelvq.train.muon import MuonWithAdamW, hidden_matrices
from channelvq.train.progress import tell
from channelvq.train.task import Losses, Recipe, Task

Stage = Literal["lm", "stage1", "stage2"]
OF_START = "start_from"  # as the name of an image tokenizer
SAMPLES = 8
COMPILED_WIDTHS = 8  # of the text, or of packed rows: multiples of it, and at most so many of them


@dataclass(frozen=True, config=STRICT)
class CARObjectiveConfig:
    """Lengths of the stages and what they work on.

    lm_steps, stage1_steps: stage 2 has the rest of train.steps. backbone_lr_ratio: the backbone's learning rate over
    that of projector, marker and head. text_vocab_size: of the byte-level BPE learned from the captions, where the
    backbone brings no text tokenizer. train_images: how many pictures are tokenized, to be read again and again; token
    shards are read to their end.
    muon_learning_rate: the peak rate of Muon for the matrices of the backbone's layers; None: AdamW for everything.
    lora: train low-rank additions to the backbone's linear layers instead of the backbone; needs lm_steps 0.
    start_from: a generator (as for `from_pretrained`) of the same model on the same image tokenizer, whose weights and
    text tokenizer are the start.
    packing: captions and images lie one behind another in rows of at most so many positions from stage 1 on, where
    captions differ much in length; null: each in a row of its own, padded to the longest caption of the batch.
    activation_checkpointing: the backbone's layers keep their inputs alone for the gradients and compute the rest
    again: much less memory, a third more time.
    """

    lm_steps: NonNegativeInt = 0
    stage1_steps: NonNegativeInt = 0
    backbone_lr_ratio: PositiveFloat = 1.0
    text_vocab_size: PositiveInt = 1024
    train_images: PositiveInt = 20_000
    muon_learning_rate: PositiveFloat | None = None
    lora: LoRAConfig | None = None
    start_from: str | None = None
    packing: PositiveInt | None = None
    activation_checkpointing: bool | None = None


@dataclass(frozen=True, config=STRICT)
class CARRecipe(Recipe):
    """Everything that decides a generator's training.

    tokenizer: "bundled", a folder or a hub id; "start_from": that of the generator objective.start_from.
    tokenizer_recipe: the recipe that trains it, for planning before it has.
    """

    task: Literal["car"] = "car"
    tokenizer: str = "bundled"
    tokenizer_recipe: str | None = None
    model: CARConfig = field(default_factory=CARConfig)
    objective: CARObjectiveConfig = field(default_factory=CARObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        before = self.objective.lm_steps + self.objective.stage1_steps
        if before > self.train.steps:
            raise ValueError(
                f"objective.lm_steps + objective.stage1_steps = {before} must be at most train.steps {self.train.steps}"
            )
        if self.objective.lora and (self.objective.lm_steps or self.objective.muon_learning_rate):
            raise ValueError("objective.lora leaves the backbone as it is: set lm_steps to 0 and leave Muon out")
        if self.tokenizer == OF_START and self.objective.start_from is None:
            raise ValueError(f"tokenizer {OF_START!r} is that of a generator: name it as objective.start_from")

    def build(self) -> "CARTask":
        """What the loop trains."""
        return CARTask(self)


def start_generator(recipe: CARRecipe) -> CAR | None:
    """The generator of `objective.start_from`, as it is stored."""
    source = recipe.objective.start_from
    return None if source is None else CAR.from_pretrained(source)


def image_tokenizer(recipe: CARRecipe, start: CAR | None) -> CVQTokenizer:
    """The image tokenizer that a recipe names; start: its `start_generator`."""
    if start is not None and recipe.tokenizer == OF_START:
        return start.tokenizer
    return CVQTokenizer.from_pretrained(recipe.tokenizer)


def token_set(data: DataConfig, tokenizer: CVQTokenizer, split: Split, count: int) -> TokenSet:
    """The first `count` images of a split as ids, from the cache where they are there; the same for every seed."""
    mixture = build_mixture(data, tokenizer.image_size, split, seed=0)
    if _holds_tokens(data):
        everything, row = stored(mixture, tokenizer)
        return everything.subset(list(dict.fromkeys(map(row, range(count)))))
    settings = f"{digest(replace(data, validation_images=1))}/{split}"
    return tokenized(tokenizer, mixture, count, settings, progress=Console().print)


def training_set(recipe: CARRecipe, tokenizer: CVQTokenizer) -> tuple[TokenSet, Callable[[int], int]]:
    """What a recipe trains on, and which row of it comes at a position: every one once before any comes again.

    Of token shards that is all there is, mixed by weight; of pictures the first objective.train_images.
    """
    data, seed = recipe.data, recipe.train.seed
    if _holds_tokens(data):
        return stored(build_mixture(data, tokenizer.image_size, "train", Stream.IMAGES.seed(seed)), tokenizer)
    tokens = token_set(data, tokenizer, "train", recipe.objective.train_images)
    return tokens, lambda position: row_at(position, len(tokens), seed)


def _holds_tokens(data: DataConfig) -> bool:
    """Whether the sources are token shards; InputError where only some are."""
    kinds = {source.kind == TokensConfig.kind for source in data.sources.values() if source.weight > 0}
    if len(kinds) > 1:
        raise InputError(
            "data.sources: some are of kind tokens and some hold pictures; give all as tokens (cvq data tokenize), "
            "or none"
        )
    return True in kinds


def _captioned(tokens: TokenSet) -> str:
    """How many pictures have a caption: a folder whose texts lie in the wrong place has none."""
    pictures = dict(zip(tokens.keys, tokens.captions, strict=True))
    told = sum(map(bool, pictures.values()))
    rest = "" if told == len(pictures) else "; the others are learned without words"
    return f"captions: {told} of {len(pictures)} training pictures have one{rest}"


def check_model(config: CARConfig, tokenizer: CVQTokenizer) -> None:
    """InputError for settings that no model can be built or run with, before minutes go into tokenizing images."""
    settings = config.backbone
    if isinstance(settings, str):
        settings = settings_of(named_config(settings))
    text = TextTokenizer(train_bpe([], NUM_BYTES))  # the captions' own will not have fewer tokens
    with torch.device("meta"):
        car = CAR(replace(config, backbone=settings), tokenizer, text)
    if sum(p.numel() for p in car.backbone.parameters()) <= TRIED_UP_TO:
        build_backbone(settings, text.vocab_size, torch.Generator().manual_seed(0))


class CARTask(Task[CARRecipe]):
    """A language model that learns captions, then the tokens of the images after them."""

    def __init__(self, recipe: CARRecipe) -> None:
        self.recipe = recipe
        start = start_generator(recipe)
        tokenizer = image_tokenizer(recipe, start)
        check_model(recipe.model, tokenizer)
        given = None if start is None else self._begun_from(start, tokenizer)
        tokenizer.to("cuda" if on_gpu(recipe.train) else "cpu")
        self.train_set, self.row_at = training_set(recipe, tokenizer)
        self.held_out = token_set(recipe.data, tokenizer, "validation", recipe.data.validation_images)
        tokenizer.to("cpu")
        generator = torch.Generator().manual_seed(recipe.train.seed)
        self.car = given or CAR(recipe.model, tokenizer, self._text(), generator=generator)
        if recipe.objective.lora is not None:
            add_low_rank(self.car.backbone, recipe.objective.lora, generator)
        self.train_set, self.held_out = (t.first_tokens(self.car.num_tokens) for t in (self.train_set, self.held_out))
        self.held_out_pictures = len(set(self.held_out.keys))
        tell(_captioned(self.train_set))
        self._check_inputs(tokenizer)
        alone, packing = recipe.model.max_text_tokens + self.car.num_tokens, recipe.objective.packing
        if not on_gpu(recipe.train):
            use_plain_attention(self.car.backbone, packing or alone)
        if packing is not None:
            check_packing(self.car.backbone, packing, alone)
        if recipe.objective.activation_checkpointing:
            recompute_layers(self.car.backbone)
        self.train_text = self._encode(self.train_set, "training")
        self.held_out_text = self._encode(self.held_out, "validation")
        self.models: dict[str, nn.Module] = {"car": self.car}
        self.networks: list[nn.Module] = [self.car]
        self.idle_parameters = recipe.objective.lm_steps + recipe.objective.stage1_steps > 0
        self.optimizers: dict[str, Optimizer] = {"car": self._optimizer()}
        self.stage: Stage | None = None

    # Data

    def _begun_from(self, given: CAR, tokenizer: CVQTokenizer) -> CAR:
        """The recipe's model with these weights; InputError unless they are of such a model on this tokenizer."""
        source = str(self.recipe.objective.start_from)
        if tokenizer_digest(given.tokenizer) != tokenizer_digest(tokenizer):
            raise InputError(
                f"objective.start_from {source!r} has another image tokenizer than {self.recipe.tokenizer!r}; "
                f"set tokenizer={OF_START}"
            )
        car = CAR(self.recipe.model, tokenizer, given.text)
        check_start(source, given.config, car.config)
        car.load_state_dict(given.state_dict())
        return car

    def _text(self) -> TextTokenizer:
        if isinstance(self.recipe.model.backbone, str):
            return TextTokenizer.from_backbone(self.recipe.model.backbone)
        return TextTokenizer(train_bpe(self.train_set.captions, self.recipe.objective.text_vocab_size))

    def _check_inputs(self, tokenizer: CVQTokenizer) -> None:
        """The ids that a run goes on with have to be of the tokenizer and text tokenizer that it began with."""
        words = json.dumps([self.train_set.captions, self.held_out.captions])
        inputs = {
            "the image tokenizer": tokenizer_digest(tokenizer),
            "the text tokenizer": self.car.text.digest(),
            "training images": tensor_sha256(self.train_set.ids),
            "captions": sha256(words.encode()).hexdigest(),
        }
        check_inputs(Path(self.recipe.train.output_dir), inputs)

    def _encode(self, tokens: TokenSet, name: str) -> Int32[Tensor, "n T"]:
        """Captions in the text slot, -1 on padding."""
        try:
            return encode_captions(self.car, tokens.captions)
        except InputError as error:
            raise InputError(f"{name} captions: {error}; or raise model.max_text_tokens") from None

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[Tensor]:
        """(b, T + C): text tokens, -1 on padding, and the image's ids. Every image once before any comes again."""
        train = self.recipe.train
        share = rank_share(train.batch_size, rank, world)
        for step in range(start_step, train.steps):
            rows = self._rows(step)[share]
            yield torch.cat([self.train_text[rows], self.train_set.ids[rows]], dim=1).long()

    def _rows(self, step: int) -> Tensor:
        """Which images the global batch of a step holds."""
        size = self.recipe.train.batch_size
        return torch.tensor([self.row_at(position) for position in range(step * size, (step + 1) * size)])

    # Training

    def stage_at(self, step: int) -> Stage:
        """Which parts train at a step."""
        objective = self.recipe.objective
        if step < objective.lm_steps:
            return "lm"
        return "stage1" if step < objective.lm_steps + objective.stage1_steps else "stage2"

    def _enter(self, stage: Stage) -> None:
        """Parameters that do not train get no gradient, and the optimizer leaves them as they are."""
        if stage != self.stage:
            for parameter in trained_of(self.car.backbone):
                parameter.requires_grad_(stage != "stage1")
            for parameter in self.car.new_parameters():
                parameter.requires_grad_(stage != "lm")
            self.stage = stage

    def _optimizer(self) -> Optimizer:
        train, objective = self.recipe.train, self.recipe.objective
        matrices = hidden_matrices(self.car.backbone) if objective.muon_learning_rate else []
        others = [p for p in trained_of(self.car.backbone) if not any(p is matrix for matrix in matrices)]
        parts = ((list(self.car.new_parameters()), 1.0), (others, objective.backbone_lr_ratio))
        groups = [
            {
                "params": [p for p in parameters if (p.ndim >= 2) == matrix],
                "lr": train.learning_rate * part_ratio,
                # Gains, biases and the marker are not pulled to zero.
                "weight_decay": train.weight_decay if matrix else 0.0,
            }
            for parameters, part_ratio in parts
            for matrix in (True, False)
        ]
        if objective.muon_learning_rate is None:
            return AdamW(groups, betas=train.betas, fused=True)
        rate, decay = objective.muon_learning_rate, train.weight_decay
        return MuonWithAdamW(groups, matrices, muon_lr=rate, weight_decay=decay, betas=train.betas)

    def losses(self, name: str, models: dict[str, nn.Module], batch: Tensor, step: int, part: int) -> Losses:
        """Nats per text token in the language stage, else nats per image token with some captions hidden."""
        stage = self.stage_at(step)
        self._enter(stage)
        text, ids = self._split(batch, trimmed=stage == "lm" or self.recipe.objective.packing is None)
        if stage == "lm":
            return Losses({"text_nats": self._text_loss(models[name](text.clamp(min=0), text >= 0), step)})
        mask = (text >= 0) & ~self._hidden(len(batch), step, part).to(text.device)[:, None]
        predicted = models[name](text.clamp(min=0), mask, ids, self._packed(mask))
        logits = predicted.logits.detach()
        return Losses({"nats": predicted.loss}, lambda: {"top1": float((logits.argmax(2) == ids).float().mean())})

    def _text_loss(self, predicted: Prediction, step: int) -> Tensor:
        """Mean over the text tokens of the global batch, of which the parts have different numbers."""
        everyone = self.train_text[self._rows(step)] >= 0
        total = int((everyone[:, 1:] & everyone[:, :-1]).sum())
        parts = self.recipe.train.batch_size // len(predicted.nats)
        return predicted.nats.masked_fill(~predicted.counted, 0.0).sum() * parts / max(1, total)

    def _split(self, batch: Tensor, trimmed: bool = True) -> tuple[Tensor, Tensor]:
        """Text, trimmed of the columns that are padding in every row, and ids."""
        slot = self.recipe.model.max_text_tokens
        text, ids = batch[:, :slot], batch[:, slot:]
        used = max(2, int((text >= 0).sum(1).max())) if trimmed else slot
        used += -used % self._multiple(slot)
        return text[:, -min(slot, used) :], ids

    def _packed(self, mask: Tensor) -> Tensor | None:
        """The rows in which this part of the batch is worked through, by what is left of its captions."""
        bound = self.recipe.objective.packing
        if bound is None:
            return None
        everything = F.pad(mask.cpu(), (0, self.car.num_tokens), value=True)
        return packed_rows(everything, bound, self._multiple(bound)).to(mask.device)

    def _multiple(self, longest: int) -> int:
        """What lengths up to `longest` are rounded to: where each is compiled, to few of them."""
        return COMPILED_WIDTHS * -(-longest // COMPILED_WIDTHS**2) if self.recipe.train.compile else 1

    def _hidden(self, count: int, step: int, part: int) -> Tensor:
        # Depends on the step and the place in the global batch, not on the number of parts.
        generator = position_generator(Stream.HIDDEN.seed(self.recipe.train.seed), step)
        everyone = torch.rand(self.recipe.train.batch_size, generator=generator) < self.recipe.model.caption_dropout
        return everyone[part * count : (part + 1) * count]

    # Evaluation

    @torch.no_grad()
    def evaluate(self, models: dict[str, nn.Module], run_dir: Path, step: int) -> dict[str, float]:
        """Held-out nats per token, the same with the captions shuffled, top-1 accuracy; a grid of samples in samples/.

        The gap between the two is what the model makes of its prompts. In the language stage: nats per text token.
        """
        car = cast(CAR, models["car"])
        if self.stage_at(step - 1) == "lm":
            return {"text_nats": self._text_nats(car)}
        nats, right = teacher_forced(car, self.held_out_text, self.held_out.ids)
        shuffled, _ = teacher_forced(car, with_other_captions(self.held_out_text), self.held_out.ids)
        self._samples(car, run_dir / "samples" / f"step-{step:08d}.png")
        return {"nats": float(nats.mean()), "nats_shuffled": float(shuffled.mean()), "top1": float(right.mean())}

    def _text_nats(self, car: CAR) -> float:
        total, count = 0.0, 0
        with evaluating(car):
            for text in self.held_out_text.to(car.device).long().split(ROWS):
                predicted = car(text.clamp(min=0), text >= 0)
                total += float(predicted.nats[predicted.counted].sum())
                count += int(predicted.counted.sum())
        return total / max(1, count)

    def _samples(self, car: CAR, path: Path) -> None:
        """Held-out images as the tokenizer restores them, above images drawn for their captions."""
        prompts = list(self.held_out.captions[:SAMPLES])
        scale = 3.0 if self.recipe.model.caption_dropout else 1.0
        drawn = car.generate(prompts, guidance_scale=scale, exact=False).images
        restored = car.tokenizer.detokenize(self.held_out.ids[:SAMPLES].long(), exact=False)
        save_image(grid([*restored, *drawn], columns=SAMPLES, captions=prompts * 2, scale=2), path)

    def save(self, models: dict[str, nn.Module], folder: Path) -> None:
        """config.json, model.safetensors, tokenizer.json, tokenizer/ and README.md."""
        merged(cast(CAR, models["car"])).save_pretrained(folder)
