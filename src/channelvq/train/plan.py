"""What a recipe costs before it is begun: built on the meta device, so that 8 billion parameters need no memory.

FLOPs count a multiplication and an addition as two. A training step costs three forward passes, or one of a frozen
network. Those of convolutions and linear layers are counted by torch on the very networks, those of a language model
are 2 a parameter and token, and 2 n H a layer for causal attention (Chowdhery et al. 2022, appendix B). Activations:
for networks the tensors that autograd keeps, in the training precision; for a language model checkpointed at every
layer, the layers' inputs and 34 n H bytes for the one that is recomputed (Korthikanti et al. 2022, eq. 2, without the
attention matrix).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from channelvq.car.backbone import PUBLISHED
from channelvq.car.model import CAR
from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.errors import InputError
from channelvq.losses.adversarial import PatchDiscriminator
from channelvq.losses.semantic import SemanticHead, SemanticTeacher
from channelvq.nn.siglip import build_siglip, siglip_config
from channelvq.terminal import table_title
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from channelvq.train.car_task import OF_START, CARRecipe, image_tokenizer, start_generator
from channelvq.train.config import TrainConfig
from channelvq.train.muon import hidden_matrices
from channelvq.train.run import load_recipe
from channelvq.train.stages import shares
from channelvq.train.task import Recipe
from channelvq.train.tokenizer_task import TokenizerRecipe

ADAM_BYTES, MUON_BYTES, FLOAT_BYTES = 8, 4, 4
LAYER_BYTES = 34


@dataclass(frozen=True)
class Machine:
    """gpus: the weights' states are spread over them (FSDP). peak: TFLOP/s of one. mfu: the share of it in use."""

    gpus: int = 8
    peak: float = 989.0
    mfu: float = 0.4


@dataclass(frozen=True)
class Part:
    """Some of a recipe's parameters: trained, or frozen as they were loaded."""

    name: str
    parameters: int
    trained: bool


@dataclass(frozen=True)
class Plan:
    """memory: bytes a GPU, by kind. forward_flops: of one image. gpu_hours: of all steps on such a machine."""

    recipe: str
    parts: tuple[Part, ...]
    tokens: int
    codes: int
    codeword: int
    forward_flops: float
    images: int
    steps: int
    memory: dict[str, float]
    gpu_hours: float
    machine: Machine

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(part.parameters for part in self.parts)

    @property
    def training_flops(self) -> float:
        """Of one image in training."""
        machine = self.machine
        return self.gpu_hours * 3600 * machine.peak * 1e12 * machine.mfu / self.images

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"parameters": self.parameters, "memory_total": sum(self.memory.values())}


def plan(name: str, recipe: Recipe, machine: Machine) -> Plan:
    """The plan of a recipe; raises InputError for a kind that needs none, or where what it builds on is unknown."""
    if not (machine.gpus > 0 and 0 < machine.peak < float("inf") and 0 < machine.mfu <= 1):
        raise InputError(f"plan: gpus and peak must be positive and mfu in (0, 1], got {machine}")
    match recipe:
        case TokenizerRecipe():
            return _tokenizer_plan(name, recipe, machine)
        case CARRecipe():
            return _car_plan(name, recipe, machine)
    raise InputError(f"recipe {name}: a {recipe.task} network is small, there is nothing to plan")


def _tokenizer_plan(name: str, recipe: TokenizerRecipe, machine: Machine) -> Plan:
    model, game = recipe.model, recipe.objective.adversarial
    meaning = recipe.objective.semantic
    with torch.device("meta"):
        tokenizer = CVQTokenizer(model)
        judge = None if game is None else PatchDiscriminator(game)
        teacher = None if meaning is None else SemanticTeacher(build_siglip(siglip_config(meaning.teacher)))
        head = None if teacher is None else SemanticHead(model.latent_channels, teacher.num_features)
    parts = [
        Part(part, sum(p.numel() for p in module.parameters()), trained=module is not teacher)
        for part, module in (("encoder", tokenizer.encoder), ("quantizer", tokenizer.quantizer),
                             ("decoder", tokenizer.decoder), ("resampler", tokenizer.resampler),
                             ("discriminator", judge), ("semantic head", head),
                             ("semantic teacher", teacher)) if module is not None
    ]  # fmt: skip
    lookup = 2.0 * model.num_tokens * model.quantizer.codebook_size * model.codebook_dim
    home = model.image_size, model.image_size
    flops, kept = lookup, 0.0
    for size, share in shares(
        recipe.sizes or (home,), recipe.growth, recipe.train.steps
    ).items():  # FLOPs of the mean image, memory of the largest; the resampler's own are few
        image = torch.empty(1, 3, *size, device="meta")
        latent = torch.empty(1, model.latent_channels, *model.maps_size(size), device="meta")
        passes: list[tuple[nn.Module, Tensor]] = [(tokenizer.encoder, image), (tokenizer.decoder, latent)]
        if judge is not None:
            passes += [(judge, image)] * 2  # a real and a restored image
        if head is not None:
            passes.append((head, torch.empty(1, model.latent_channels, *model.maps_size(home), device="meta")))
        measured = [_measure(module, x) for module, x in passes]
        flops += share * sum(more for more, _ in measured)
        kept = max(kept, sum(held for _, held in measured))
    image = torch.empty(1, 3, *home, device="meta")
    frozen = 0.0 if teacher is None else _measure(teacher, image)[0]
    kept *= _bytes(recipe.train) / FLOAT_BYTES
    return _plan(name, recipe.train, machine, parts, model, flops, kept, frozen)


def _measure(module: nn.Module, x: Tensor) -> tuple[float, float]:
    """(FLOPs, bytes that autograd keeps) of a forward pass in float32."""
    with FlopCounterMode(display=False) as counter, kept_for_gradients(module) as kept:
        module(x.requires_grad_(True))
    return float(counter.get_total_flops()), float(sum(kept.values()))


@contextmanager
def kept_for_gradients(module: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes by storage that autograd keeps of what is computed within it, the module's own weights left out."""
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _car_plan(name: str, recipe: CARRecipe, machine: Machine) -> Plan:
    model = tokenizer_config(recipe)
    settings = recipe.model.backbone
    if isinstance(settings, str):
        settings = _published(settings)
    text_tokens = settings.get("vocab_size", recipe.objective.text_vocab_size)
    with torch.device("meta"):
        tokenizer = CVQTokenizer(model)
        config = replace(recipe.model, backbone=settings | {"vocab_size": text_tokens})
        car = CAR(config, tokenizer, TextTokenizer(train_bpe([], 256)))
    text = car.text_embedding.weight.numel()
    backbone = sum(p.numel() for p in car.backbone.parameters()) - text
    new = sum(p.numel() for p in car.new_parameters())
    frozen = sum(p.numel() for p in tokenizer.parameters())
    lora = recipe.objective.lora
    parts = [Part("backbone", backbone, lora is None), Part("text embedding", text, lora is None),
             Part("projector, marker, head", new, True), Part("image tokenizer", frozen, False)]  # fmt: skip
    matrices = hidden_matrices(car.backbone)
    if lora is not None:
        added = sum(lora.rank * sum(matrix.shape) for matrix in matrices)
        parts.insert(2, Part("low-rank additions", added, True))
    shape = car.backbone.config.get_text_config(decoder=True)
    layers, width = shape.num_hidden_layers, shape.hidden_size
    n = recipe.model.max_text_tokens + car.num_tokens
    flops = 2.0 * n * (backbone + new) + 2.0 * layers * n * n * width
    kept = n * width * (layers * _bytes(recipe.train) + LAYER_BYTES) + 4.0 * car.num_tokens * car.codebook_size
    by_muon = sum(matrix.numel() for matrix in matrices) if recipe.objective.muon_learning_rate else 0
    kept_as_is = 0.0 if lora is None else 2.0 * n * backbone
    return _plan(name, recipe.train, machine, parts, model, flops, kept, by_muon=by_muon, kept_as_is=kept_as_is)


def tokenizer_config(recipe: CARRecipe) -> CVQConfig:
    """What a generator's image tokenizer is: from its files, or from the recipe that is to train it."""
    if recipe.tokenizer in ("bundled", OF_START) or Path(recipe.tokenizer).is_dir():
        start = start_generator(recipe) if recipe.tokenizer == OF_START else None  # else a plan needs no such weights
        return image_tokenizer(recipe, start).config
    if recipe.tokenizer_recipe is None:
        raise InputError(
            f"plan: the tokenizer {recipe.tokenizer!r} is not here; name the recipe that trains it as tokenizer_recipe"
        )
    return load_recipe(recipe.tokenizer_recipe, of=TokenizerRecipe).model


def _published(name: str) -> dict[str, Any]:
    if name not in PUBLISHED:
        raise InputError(f"plan: the shape of backbone {name!r} is not known, only of {', '.join(PUBLISHED)}; "
                         "give model.backbone as settings")  # fmt: skip
    return PUBLISHED[name]


def _bytes(train: TrainConfig) -> int:
    return FLOAT_BYTES if train.precision == "no" else 2  # auto: on the GPUs that are planned for, bf16


def _plan(
    name: str,
    train: TrainConfig,
    machine: Machine,
    parts: list[Part],
    model: CVQConfig,
    flops: float,
    kept: float,
    frozen: float = 0.0,
    by_muon: int = 0,
    kept_as_is: float = 0.0,
) -> Plan:
    """kept: bytes of activations of one image. frozen: FLOPs of what no gradient passes through.

    kept_as_is: FLOPs of weights that gradients pass but that have none of their own, a third less work.

    by_muon: parameters that Muon trains, which keeps one number of each where Adam keeps two.
    """
    trained = sum(part.parameters for part in parts if part.trained)
    everything = sum(part.parameters for part in parts)
    memory = {
        "weights": everything * FLOAT_BYTES / machine.gpus,
        "gradients": trained * FLOAT_BYTES / machine.gpus,
        "optimizer": ((trained - by_muon) * ADAM_BYTES + by_muon * MUON_BYTES) / machine.gpus,
        "moving average": trained * FLOAT_BYTES / machine.gpus if train.ema else 0.0,
        "activations": kept * train.batch_size / machine.gpus,
    }
    images = train.steps * train.batch_size
    hours = (3 * flops + frozen - kept_as_is) * images / (machine.peak * 1e12 * machine.mfu) / 3600
    return Plan(name, tuple(parts), model.num_tokens, model.quantizer.codebook_size, model.codebook_dim, flops + frozen,
                images, train.steps, memory, hours, machine)  # fmt: skip


def table(made: Plan) -> Table:
    """For a terminal."""
    machine = made.machine
    shown = Table(
        "what", "how much", title=table_title(made.recipe),
        caption=f"{machine.gpus} GPUs of {machine.peak:g} TFLOP/s, of which "
        f"{machine.mfu:.0%} are used; states sharded; activations are an estimate",
    )  # fmt: skip
    for part in made.parts:
        shown.add_row(part.name, f"{part.parameters / 1e6:,.1f} M{'' if part.trained else ', frozen'}")
    shown.add_row("all parameters", f"{made.parameters / 1e6:,.1f} M", end_section=True)
    shown.add_row("tokens an image", f"{made.tokens} of {made.codes} codes of {made.codeword} numbers")
    shown.add_row("forward pass of an image", f"{made.forward_flops / 1e9:,.1f} GFLOP")
    shown.add_row("steps, images", f"{made.steps:,}, {made.images:,}", end_section=True)
    for kind, size in made.memory.items():
        shown.add_row(f"{kind}, a GPU", _bytes_text(size))
    shown.add_row("all memory, a GPU", _bytes_text(sum(made.memory.values())), end_section=True)
    shown.add_row("GPU-hours", f"{made.gpu_hours:,.1f}" if made.gpu_hours >= 0.05 else f"{made.gpu_hours:.2g}")
    return shown


def _bytes_text(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 / 10 else f"{size / 2**30:,.2f} GiB"
