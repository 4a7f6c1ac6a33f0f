"""What `python -m lab bench gpu` measures, each part by itself; without network or data packages."""

import gc
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from channelvq.car.backbone import PUBLISHED
from channelvq.car.config import CARConfig
from channelvq.car.export import stock_model
from channelvq.car.model import CAR
from channelvq.data.drawn.scenes import SceneConfig
from channelvq.images import normalize
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import CARRecipe, CARTask
from channelvq.train.engine import Engine
from channelvq.train.plan import Machine, plan
from channelvq.train.run import load_recipe
from channelvq.train.task import Recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.bench.generate import PEER, PROMPT, fresh, stock_method
from lab.bench.graphed import graphed
from lab.bench.lookup import FLOOR, METHODS, Case, built_method, floor, in_float64
from lab.bench.timing import interleaved, ratio, seconds
from lab.bench.train import build, spread_codewords

Figures = list[dict[str, Any]]
R = TypeVar("R", bound=Recipe)
Kind = Literal["cpu", "cuda"]
DRAWN = ("data.sources.scenes={kind: scenes, sprites: shapes, weight: 1}", "data.validation_images=8",
         "train.data_workers=0", "train.warmup_steps=0")  # fmt: skip
TOKENIZER = (*DRAWN, "data.sources.fluent.weight=0", "data.sources.photos.weight=0", "model.quantizer.start=uniform",
             "objective.adversarial.start_step=0", "objective.adversarial.ramp_steps=0")  # fmt: skip
GENERATOR = (*DRAWN, "data.sources.mine.weight=0", "objective.stage1_steps=0")
DRAWS = [PROMPT, "a red car", "a blue umbrella", "a blue umbrella and a red car"]


@dataclass(frozen=True)
class Sizes:
    """lookup: cases. tokenizer, tokenizer_of_generator, generator: more settings of their recipes. layers, backbone: of
    the paper's 4B model. generation: (codes, tokens, images at once) by a backbone with the settings `sampled`.
    images, drawn: whose ids are compared, and how many tokens of generated ones.
    """

    lookup: tuple[Case, ...]
    rounds: int
    tokenizer: tuple[str, ...]
    tokenizer_of_generator: tuple[str, ...]
    generator: tuple[str, ...]
    layers: int
    backbone: dict[str, Any]
    generation: tuple[tuple[int, int, int], ...]
    sampled: dict[str, Any]
    images: int
    drawn: int


FULL = Sizes(
    lookup=(Case(16_384, 256, 16_384), Case(65_536, 256, 16_384), Case(16_384, 1024, 4096)),
    rounds=15,
    tokenizer=("train.batch_size=32",),
    tokenizer_of_generator=(),
    generator=("train.batch_size=32", "objective.train_images=32"),
    layers=4,
    backbone={},
    generation=((16_384, 256, 1), (16_384, 256, 8)),
    sampled={"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1536},
    images=256,
    drawn=64,
)
# That all of it runs is shown on a CPU in seconds; of speed it says nothing.
NARROW = (
    "model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8",
    "model.network.multipliers=[1,1]", "model.network.num_blocks=1", "model.quantizer.codebook_size=32",
)  # fmt: skip
TINY = Sizes(
    lookup=(Case(300, 16, 64),),
    rounds=2,
    tokenizer=(*NARROW, "train.batch_size=2", "objective.adversarial.base_channels=8",
               "objective.adversarial.layers=1"),
    tokenizer_of_generator=NARROW,
    generator=("train.batch_size=2", "objective.train_images=2", "model.max_text_tokens=80",
               "objective.text_vocab_size=300"),
    layers=1,
    backbone={"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
              "intermediate_size": 48, "vocab_size": 300},
    generation=((64, 8, 2),),
    sampled={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48},
    images=2,
    drawn=2,
)  # fmt: skip


# The lookup


def lookup(sizes: Sizes, device: Kind, peak: float) -> Figures:
    """Ours (on a GPU by the Triton kernel) beside its peers, and all rows of it against float64."""
    return [figure for case in sizes.lookup for figure in _looked_up(case, sizes.rounds, device)]


def _looked_up(case: Case, rounds: int, device: Kind) -> Figures:
    vectors, codebook = (numbers.to(device) for numbers in case.make())
    peers = [name for name in METHODS if device == "cpu" or not name.startswith("faiss")]
    built = {name: made for name in peers if (made := built_method(name, codebook)) is not None}
    truth = in_float64(vectors, codebook)
    agreement = {name: float((method(vectors) == truth).float().mean()) for name, method in built.items()}
    calls = {name: partial(method, vectors) for name, method in {FLOOR: floor(vectors, codebook), **built}.items()}
    memory = {name: _grown(call, device) for name, call in calls.items()}
    times = interleaved(calls, rounds)
    return [
        {"case": f"N {case.codes:,}, D {case.dim}, {case.rows:,} vectors: {name}",
         "milliseconds": 1000 * statistics.median(taken), "over_the_product": ratio(taken, times[FLOOR]),
         "equal_to_float64": agreement.get(name), "peak_mib": memory[name]}
        for name, taken in times.items()
    ]  # fmt: skip


def _grown(call: Callable[[], object], device: Kind) -> float | None:
    """MiB of the GPU that a call takes for a time."""
    if device == "cpu":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


# Steps of training


def tokenizer_step(sizes: Sizes, device: Kind, peak: float, compiled: bool = False) -> Figures:
    """A step of gpu/tokenizer-256 with its discriminator; the batch is in memory."""

    def measured(recipe: TokenizerRecipe) -> Figures:
        with tempfile.TemporaryDirectory() as folder:
            engine, batch = build(recipe, Path(folder), device)
            spread_codewords(engine.task.tokenizer, batch[:4])  # type: ignore[attr-defined]
            return [_step("gpu/tokenizer-256", recipe, engine, batch, sizes.rounds, peak)]

    settings = [*TOKENIZER, *sizes.tokenizer, f"train.compile={str(compiled).lower()}"]
    return _fitting(load_recipe("gpu/tokenizer-256", settings, of=TokenizerRecipe), measured)


def generator_step(sizes: Sizes, device: Kind, peak: float, compiled: bool = False) -> Figures:
    """A step of paper/car-4b with fewer layers, in stage II."""
    shape = PUBLISHED["Qwen/Qwen3-4B"] | {"num_hidden_layers": sizes.layers} | sizes.backbone

    def measured(recipe: CARRecipe) -> Figures:
        with tempfile.TemporaryDirectory() as folder, _cache_in(folder):
            _save_fresh_tokenizer(Path(folder) / "tokenizer", sizes)
            place = replace(recipe.train, output_dir=f"{folder}/run", device=device)
            recipe = replace(recipe, tokenizer=f"{folder}/tokenizer", train=place)
            engine = Engine(CARTask(recipe), recipe.train, recipe)
            batch = next(engine.task.batches(0, 0, 1))
            name = f"paper/car-4b, {shape['num_hidden_layers']} of 36 layers"
            return [_step(name, recipe, engine, batch, sizes.rounds, peak)]

    settings = [*GENERATOR, *sizes.generator, f"model.backbone={json.dumps(shape)}",
                f"train.compile={str(compiled).lower()}"]  # fmt: skip
    return _fitting(load_recipe("paper/car-4b", settings, of=CARRecipe), measured)


def _save_fresh_tokenizer(folder: Path, sizes: Sizes) -> None:
    settings = ["model.quantizer.start=uniform", *sizes.tokenizer_of_generator]
    CVQTokenizer(load_recipe("paper/cvq-16k-256", settings, of=TokenizerRecipe).model).eval().save_pretrained(folder)


@contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    before = os.environ.get("CHANNELVQ_CACHE")
    os.environ["CHANNELVQ_CACHE"] = f"{folder}/cache"
    try:
        yield
    finally:
        del os.environ["CHANNELVQ_CACHE"]
        if before is not None:
            os.environ["CHANNELVQ_CACHE"] = before


def _fitting(recipe: R, measured: Callable[[R], Figures]) -> Figures:
    """What is measured at the recipe's batch, or at the largest half, quarter, ... of it that fits into memory."""
    while True:
        try:
            return measured(recipe)
        except torch.OutOfMemoryError:
            if recipe.train.batch_size == 1:
                raise
        recipe = replace(recipe, train=replace(recipe.train, batch_size=recipe.train.batch_size // 2))
        gc.collect()
        torch.cuda.empty_cache()


def _step(name: str, recipe: Recipe, engine: Engine, batch: Tensor, rounds: int, peak: float) -> dict[str, Any]:
    first = seconds(partial(engine.step, batch, 0))
    if engine.accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = statistics.median(seconds(partial(engine.step, batch, 1)) for _ in range(rounds))
    flops = plan(name, recipe, Machine(gpus=1, peak=peak, mfu=1.0)).training_flops * len(batch)
    on_gpu = engine.accelerator.device.type == "cuda"
    return {
        "case": f"{name}, batch {len(batch)}{', compiled' if recipe.train.compile else ''}",
        "milliseconds": 1000 * taken, "first_seconds": first, "images_per_second": len(batch) / taken,
        "precision": recipe.train.precision, "tflop": flops / 1e12,
        "mfu": flops / taken / (peak * 1e12) if on_gpu else None,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
    }  # fmt: skip


# Sampling


def generation(sizes: Sizes, device: Kind, peak: float, compiled: bool | None = None) -> Figures:
    """Sampling beside transformers' generate; compiled, and by a CUDA graph, on a GPU or where `compiled`."""
    compiled = device == "cuda" if compiled is None else compiled
    return [figure for case in sizes.generation for figure in _generated(*case, sizes, device, compiled)]


def _generated(codes: int, tokens: int, images: int, sizes: Sizes, device: Kind, compiled: bool) -> Figures:
    model = fresh(codes, tokens, config=CARConfig(backbone=sizes.sampled)).to(device)
    stock, layout = stock_model(model)
    draw = partial(model.generate, [PROMPT] * images, guidance_scale=1.0)
    methods: dict[str, Callable[[], Any]] = {
        PEER: stock_method(stock.to(model.device), layout, model, images),  # pyright: ignore[reportArgumentType]
        "channelvq": draw,
        "channelvq, exact=False": partial(draw, exact=False),
    }
    if compiled:
        methods["channelvq, compiled"] = partial(draw, exact=False, compiled=True)
    if compiled and device == "cuda":
        methods["channelvq, compiled, CUDA graph"] = partial(_by_graph, draw)
    first = {name: seconds(method) for name, method in methods.items()}
    plain = methods["channelvq, exact=False"]().ids
    equal = {name: float((method().ids == plain).float().mean()) for name, method in methods.items() if name != PEER}
    times = interleaved(methods, max(2, sizes.rounds // 3))
    return [
        {"case": f"{images} of {tokens} tokens, {codes:,} codes: {name}",
         "tokens_per_second": images * tokens / statistics.median(taken),
         "over_transformers": 1 / ratio(taken, times[PEER]),
         "first_seconds": first[name], "equal_to_plain": equal.get(name)}
        for name, taken in times.items()
    ]  # fmt: skip


def _by_graph(draw: Callable[..., Any]) -> Any:
    with graphed():
        return draw(exact=False, compiled=True)


# Equality of ids


@torch.no_grad()
def ids(sizes: Sizes, device: Kind, peak: float) -> Figures:
    """Shares of equal ids of the bundled models: bfloat16 around the call, alone or in a batch, here and there."""
    there = CVQTokenizer.from_pretrained("bundled", device=device)
    images = _pictures(sizes.images, there.image_size)
    usual = there.tokenize(images.to(there.device)).cpu()
    with torch.autocast(device, torch.bfloat16):
        within = there.tokenize(images.to(there.device)).cpu()
        quantized = there(images.to(there.device))[1]
    assert quantized is not None
    alone = torch.cat([there.tokenize(image[None].to(there.device)).cpu() for image in images[:16]])
    here = CVQTokenizer.from_pretrained("bundled").tokenize(images)
    figures = {
        "tokenize inside bfloat16 autocast, to outside": (within, usual),
        "tokenize one by one, to all at once": (alone, usual[:16]),
        f"tokenize on {device}, to the CPU": (usual, here),
        "an encoder in bfloat16, as in training, to float32": (quantized.indices.cpu(), usual),
    } | _drawn_ids(device, sizes.drawn)
    return [{"case": name, "equal": float((a == b).float().mean())} for name, (a, b) in figures.items()]


def _drawn_ids(device: Kind, tokens: int) -> dict[str, tuple[Tensor, Tensor]]:
    model = CAR.from_pretrained("bundled", device=device)
    usual = model.generate(DRAWS, seed=0, num_tokens=tokens).ids.cpu()
    with torch.autocast(device, torch.bfloat16):
        within = model.generate(DRAWS, seed=0, num_tokens=tokens).ids.cpu()
    last = model.generate(DRAWS[3:], seed=3, num_tokens=tokens).ids.cpu()
    here = CAR.from_pretrained("bundled").generate(DRAWS, seed=0, num_tokens=tokens).ids
    return {
        "generate inside bfloat16 autocast, to outside": (within, usual),
        "generate one alone, to the same among four": (last, usual[3:]),
        f"generate on {device}, to the CPU": (usual, here),
    }


def _pictures(count: int, size: int) -> Float[Tensor, "n 3 h w"]:
    source = SceneConfig(sprites="shapes").build(size, "validation")
    drawn = [source.sample(i, torch.Generator().manual_seed(i)).image for i in range(count)]
    return normalize(torch.stack(drawn))
