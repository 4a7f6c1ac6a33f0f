"""`python -m lab bench train`: what the engine adds to a step, the quantizer's share, and what compiling takes off.

A step of the engine is measured beside one of a plain PyTorch loop with the same model, losses and optimizers, the data
already in memory, in turns; a ratio is that of two neighbouring steps, and the median over rounds is kept.
"""

import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from channelvq.data.stream import Stream, position_generator
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.losses.adversarial import adaptive_weight, hinge_discriminator, hinge_generator, prefix_weights, ramp
from channelvq.nested import draw_keep, keep_mask
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import CARRecipe, CARTask
from channelvq.train.engine import Engine, schedule
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask
from lab.bench.timing import machine, ratio, seconds
from lab.study import Tables

Step = Callable[[Tensor, int], object]
DRAWN = ("data.sources.scenes={kind: scenes, sprites: shapes, weight: 1}", "data.validation_images=8")
SMALL = (*DRAWN, *(f"data.sources.{name}.weight=0" for name in ("fluent", "noto", "twemoji", "photos")),
         "objective.start_images=128")  # fmt: skip
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "pixel loss, 64 px": ("small/conv", (*SMALL, "model.quantizer.kind=plain")),
    "full recipe, 64 px": ("small/full", (*SMALL, "objective.adversarial.start_step=0")),
}
# LPIPS takes part with our network in its place, which is smaller: the share is rather too large than too small.
PAPER = ("paper/cvq-16k-256", (*DRAWN, "data.sources.imagenet.weight=0", "train.data_workers=0", "train.batch_size=1",
                               "objective.perceptual.network=bundled", "model.quantizer.start=uniform"))  # fmt: skip
GENERATOR = ("small/scenes-car", ("tokenizer=bundled", "data.sources.scenes.sprites=shapes", "data.validation_images=8",
                                  "objective.train_images=64", "train.threads=0"))  # fmt: skip


def run(
    rounds: int,
    path: Path | None,
    extra: Sequence[str] = (),
    paper_extra: Sequence[str] = (),
    generator_extra: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure and write the result. extra, ...: overrides of the small, the paper's and the generator's recipe."""
    records = [_overhead(name, load_recipe(recipe, [*settings, *extra], of=TokenizerRecipe), rounds)
               for name, (recipe, settings) in CASES.items()]  # fmt: skip
    records.append(_share(load_recipe(PAPER[0], [*PAPER[1], *paper_extra], of=TokenizerRecipe), max(3, rounds // 4)))
    records.append(_compiled([*GENERATOR[1], *generator_extra], rounds))
    result = {"protocol": _protocol(rounds), "records": records}
    if path is not None:
        write_json(path, result)
    return result


def _protocol(rounds: int) -> dict[str, Any]:
    return machine() | {
        "rounds": rounds,
        "ratio": "median over rounds of the time of one step over that of the other, in turns; data in memory",
        "plain": "a PyTorch loop with the same model, losses, optimizers, clipping, schedule and moving average",
        "compiled": "a step of stage II by torch.compile over one without, after the first, which compiles",
        "share": "forward, backward and optimizer step of the quantizer alone over a step of the engine",
        "codewords": "of the paper's recipe: random normal with the latents' mean and deviation",
    }


def _overhead(name: str, recipe: TokenizerRecipe, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        engine, batch = build(recipe, Path(folder))
        plain = plain_loop(started(recipe))
        ours, theirs = _in_turns((engine.step, plain), batch, rounds)
    return {"case": name, "batch": len(batch), "milliseconds": 1000 * statistics.median(ours),
            "plain_milliseconds": 1000 * statistics.median(theirs),
            "ratio": ratio(ours, theirs)}  # fmt: skip


def _share(recipe: TokenizerRecipe, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        engine, batch = build(recipe, Path(folder))
        assert isinstance(engine.task, TokenizerTask)
        latents = spread_codewords(engine.task.tokenizer, batch)
        steps, parts = _in_turns((engine.step, quantizer_alone(engine.task.tokenizer, latents)), batch, rounds)
    return {"case": "quantizer of paper/cvq-16k-256", "batch": len(batch),
            "milliseconds": 1000 * statistics.median(steps), "quantizer_milliseconds": 1000 * statistics.median(parts),
            "share": ratio(parts, steps)}  # fmt: skip


def _compiled(settings: Sequence[str], rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        engines = []
        for switch in ("true", "false"):
            place = f"train.output_dir={folder}/{switch}"
            recipe = load_recipe(
                GENERATOR[0], [*settings, f"train.compile={switch}", place, "train.device=cpu"], of=CARRecipe
            )
            engines.append(Engine(CARTask(recipe), recipe.train, recipe))
        first = recipe.objective.lm_steps + recipe.objective.stage1_steps
        batch = next(engines[0].task.batches(first, 0, 1))
        ours, theirs = _in_turns(
            (lambda b, n: engines[0].step(b, first + n), lambda b, n: engines[1].step(b, first + n)), batch, rounds
        )
    return {"case": "generator, compiled", "batch": len(batch), "milliseconds": 1000 * statistics.median(ours),
            "uncompiled_milliseconds": 1000 * statistics.median(theirs), "ratio": ratio(ours, theirs)}  # fmt: skip


def started(recipe: TokenizerRecipe) -> TokenizerTask:
    """A task that is ready for its first step; two of one recipe have equal weights."""
    task = TokenizerTask(recipe)
    task.start()
    return task


def build(
    recipe: TokenizerRecipe, folder: Path, device: Literal["cpu", "cuda"] = "cpu"
) -> tuple[Engine, UInt8[Tensor, "B 3 H W"]]:
    """An engine that is ready for its first step, and a batch."""
    recipe = replace(recipe, train=replace(recipe.train, output_dir=str(folder), device=device))
    task = started(recipe)
    return Engine(task, recipe.train, recipe), next(task.batches(0, 0, 1))


def plain_loop(task: TokenizerTask) -> Step:
    """A step as a script of one's own would make it: the models and optimizers of a task, nothing of the engine."""
    recipe, models, optimizers = task.recipe, task.models, task.optimizers
    train, tokenizer = recipe.train, task.tokenizer
    schedulers = [LambdaLR(optimizer, lambda step: schedule(train, step)) for optimizer in optimizers.values()]
    averages = {
        name: AveragedModel(models[name], multi_avg_fn=get_ema_multi_avg_fn(train.ema))
        for name in (optimizers if train.ema else ())
    }

    def update(name: str, loss: Tensor) -> None:
        optimizers[name].zero_grad()
        loss.backward()
        if train.clip_norm is not None:
            nn.utils.clip_grad_norm_(models[name].parameters(), train.clip_norm)
        optimizers[name].step()
        if name in averages:
            averages[name].update_parameters(models[name])

    def step(batch: Tensor, number: int) -> None:
        x = batch.float() / 127.5 - 1
        generator = position_generator(Stream.HIDDEN.seed(train.seed), number)
        keep = draw_keep(recipe.nested, len(x), tokenizer.num_tokens, generator, number / train.steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bf16"):
            x_hat, quantized = tokenizer(x, keep_mask(keep, tokenizer.num_tokens))
            assert quantized is not None
            loss = recipe.objective.pixel_weight * (x_hat.float() - x).square().mean()
            if task.perceptual is not None and recipe.objective.perceptual is not None:
                loss = loss + recipe.objective.perceptual.weight * task.perceptual(x_hat.float(), x).mean()
            judged, weights = _judge(task, loss, x_hat.float(), keep, number)
        update("tokenizer", loss + judged + quantized.loss)
        if task.adversary is not None:
            with torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bf16"):
                real, fake = task.adversary.discriminator(torch.cat([x, x_hat.float().detach()])).chunk(2)
                loss = hinge_discriminator(real, fake, weights)
            update("discriminator", loss)
        for scheduler in schedulers:
            scheduler.step()
        loss.item()  # to be shown

    return step


def _judge(task: TokenizerTask, loss: Tensor, x_hat: Tensor, keep: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The adversarial term of the plain loop, and the images' weights in the game."""
    game = task.recipe.objective.adversarial
    if game is None or task.adversary is None:
        return loss.new_zeros(()), loss.new_ones(len(x_hat))
    weights = prefix_weights(game, keep, task.tokenizer.num_tokens)
    task.adversary.discriminator.requires_grad_(False)
    term = hinge_generator(task.adversary.discriminator(x_hat), weights)
    task.adversary.discriminator.requires_grad_(True)
    balance = adaptive_weight(loss, term, task.tokenizer.decoder.last_weight)
    return ramp(game, number) * game.weight * balance * term, weights


@torch.no_grad()
def spread_codewords(tokenizer: CVQTokenizer, batch: Tensor) -> Float[Tensor, "B C h w"]:
    """Codewords of the size of the latents, which are returned: a start from data would take longer than the bench."""
    latents = tokenizer.encoder(batch.to(tokenizer.device).float() / 127.5 - 1).float()
    for weight in tokenizer.quantizer.parameters():
        numbers = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        weight.copy_(numbers * float(latents.std()) + float(latents.mean()))
    return latents


def quantizer_alone(tokenizer: CVQTokenizer, latents: Float[Tensor, "B C h w"]) -> Step:
    """Forward, backward and optimizer step of a copy of the quantizer, on latents."""
    quantizer = copy.deepcopy(tokenizer.quantizer).train()
    optimizer = AdamW(quantizer.parameters(), 1e-4)

    def step(batch: Tensor, number: int) -> None:
        quantized = quantizer(latents.clone().requires_grad_(True))
        (quantized.loss + quantized.z_q.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _in_turns(steps: tuple[Step, Step], batch: Tensor, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each step, one of the first and one of the second kind in turns; the first round is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for kind in (0, 1) if number % 2 else (1, 0):  # neither is always the one after
            took = seconds(partial(steps[kind], batch, number))
            if number:
                times[kind].append(took)
    return times


HEADINGS = ("what", "batch", "a step, ms", "beside, ms", "ratio")


def shown(result: dict[str, Any]) -> TextTable:
    """Engine over plain loop, the quantizer over the step, or compiled over not."""
    rows = []
    for r in result["records"]:
        if "plain_milliseconds" in r:
            beside, share = f"{r['plain_milliseconds']:.0f}, plain loop", f"{r['ratio']:.3f}"
        elif "uncompiled_milliseconds" in r:
            beside, share = f"{r['uncompiled_milliseconds']:.0f}, not compiled", f"{r['ratio']:.3f}"
        else:
            beside, share = f"{r['quantizer_milliseconds']:.0f}, quantizer alone", f"{r['share']:.1%}"
        rows.append([r["case"], str(r["batch"]), f"{r['milliseconds']:.0f}", beside, share])
    return TextTable(HEADINGS, rows, result["protocol"]["machine"])


TABLES: Tables = {"train": ("train-bench.json", shown)}
