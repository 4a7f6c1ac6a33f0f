"""What `python -m lab bench cost` measures: steps of the parts alone, each point in a process of its own."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint

from channelvq.car.config import CARConfig
from channelvq.car.model import CAR
from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.errors import InputError
from channelvq.lookup.nearest import nearest_codeword
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.channel_vq import ChannelVQ
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig, CVQTokenizer

WIDTH = 256  # of the small backbone
PART = 64  # rows whose logits are there at a time
HEADS = {
    "whole": "all logits (ours today)",
    "checkpointed": f"{PART} rows at a time, made again for the gradient",
    "torch": "torch's linear_cross_entropy in chunks",
}
Step = Callable[[], object]
HeadLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """tokens C, codes N, dim D, batch B, text T."""

    tokens: int
    codes: int
    dim: int = 256
    batch: int = 1
    text: int = 32


def isolated(make: Callable[[], Step], repeats: int) -> dict[str, Any]:
    """Median processor seconds of a step, and bytes by which the process grew; what else the step gives, if a dict.

    In a fork: what one point leaves of memory and of caches no other one meets. Linux alone tells the peak of a process
    since a moment. The first step is not timed, but its memory counts: it makes the optimizer's states.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(there, make, repeats))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        found = "it ended without a word, perhaps for want of memory"
    process.join()
    if isinstance(found, str):
        raise InputError(f"bench cost: {found}")
    return found


def _child(pipe: Connection, make: Callable[[], Step], repeats: int) -> None:
    try:
        step = make()
        before = _peak_from_now()
        said, times = _told(step()), []
        for _ in range(repeats):
            began = time.process_time()
            step()
            times.append(time.process_time() - began)
        grown = _memory("VmHWM") - before
        pipe.send({"seconds": statistics.median(times), "memory": grown, **said})
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _told(by_a_step: object) -> dict[str, Any]:
    return by_a_step if isinstance(by_a_step, dict) else {}  # what else it is must not stay in memory


def _peak_from_now() -> int:
    """Forget the peak so far; bytes that the process has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


# Steps


def lookup_step(sizes: Sizes) -> Step:
    """The nearest codeword of each vector, as `ChannelVQ` looks it up; random numbers."""
    torch.manual_seed(0)
    vectors, codebook = torch.randn(sizes.batch * sizes.tokens, sizes.dim), torch.randn(sizes.codes, sizes.dim)
    return lambda: nearest_codeword(vectors, codebook)


def tokenizing_step(sizes: Sizes) -> Step:
    """`tokenize` of the bundled tokenizer, of a batch of pictures."""
    torch.manual_seed(0)
    tokenizer = CVQTokenizer.from_pretrained("bundled")
    images = torch.rand(sizes.batch, 3, tokenizer.image_size, tokenizer.image_size) * 2 - 1
    return lambda: tokenizer.tokenize(images)


def quantizer_step(sizes: Sizes) -> Step:
    """Forward, backward and AdamW of a quantizer of kind plain, on latents."""
    side = round(sizes.dim**0.5)
    torch.manual_seed(0)
    quantizer = ChannelVQ(sizes.codes, side * side, kind="plain", start="uniform").train()
    latents = torch.randn(sizes.batch, sizes.tokens, side, side)
    with torch.no_grad():
        for weight in quantizer.parameters():
            weight.normal_()
    optimizer = AdamW(quantizer.parameters(), 1e-4)

    def step() -> None:
        out = quantizer(latents.clone().requires_grad_(True))
        (out.loss + out.z_q.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def generator_step(sizes: Sizes) -> Step:
    """Forward, backward and AdamW of a generator with a fresh small backbone, on random ids and texts."""
    side = round(sizes.dim**0.5)
    network = ConvConfig(base_channels=8, multipliers=(1,), num_blocks=1, attention=False, stem=1)
    torch.manual_seed(0)
    tokenizer = CVQTokenizer(
        CVQConfig(side, sizes.tokens, network=network, quantizer=PlainConfig(codebook_size=sizes.codes))
    )
    with torch.no_grad():
        tokenizer.quantizer.codes().normal_()
    positions = sizes.text + sizes.tokens
    backbone = {"hidden_size": WIDTH, "max_position_embeddings": max(512, positions)}
    config = CARConfig(backbone=backbone, max_text_tokens=sizes.text)
    car = CAR(config, tokenizer, TextTokenizer(train_bpe([], 256))).train()
    ids = torch.randint(sizes.codes, (sizes.batch, sizes.tokens))
    text = torch.randint(200, (sizes.batch, sizes.text))
    mask = torch.ones_like(text, dtype=torch.bool)
    optimizer = AdamW([weight for weight in car.parameters() if weight.requires_grad], 1e-4)

    def step() -> None:
        car(text, mask, ids).nats.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def head_step(how: str, sizes: Sizes) -> Step:
    """Forward, backward and AdamW of a linear head with its cross entropy."""
    rows = sizes.tokens * sizes.batch
    torch.manual_seed(0)
    hidden, targets = torch.randn(rows, WIDTH), torch.randint(sizes.codes, (rows,))
    head = nn.Linear(WIDTH, sizes.codes, bias=False)
    optimizer = AdamW(head.parameters(), 1e-4)
    loss = head_loss(how)

    def step() -> None:
        loss(hidden.clone().requires_grad_(True), head.weight, targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def gradients_apart(how: str, sizes: Sizes) -> dict[str, float]:
    """The largest difference of a gradient to that of all logits at once, over the largest gradient."""
    rows = sizes.tokens * sizes.batch
    torch.manual_seed(0)
    hidden, targets = torch.randn(rows, WIDTH), torch.randint(sizes.codes, (rows,))
    weight = torch.randn(sizes.codes, WIDTH) / WIDTH**0.5
    found = []
    for kind in ("whole", how):
        given = (hidden.clone().requires_grad_(True), weight.clone().requires_grad_(True))
        head_loss(kind)(*given, targets).backward()
        found.append([each.grad for each in given])
    pairs = zip(*found, strict=True)
    return {"apart": max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)}


def head_loss(how: str) -> HeadLoss:
    """(hidden (R, H), weight (N, H), targets (R,)) -> the mean cross entropy."""

    def whole(
        hidden: Float[Tensor, "R H"], weight: Float[Tensor, "N H"], targets: Int64[Tensor, " R"]
    ) -> Float[Tensor, ""]:
        return F.cross_entropy(F.linear(hidden, weight), targets)

    def part(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")

    def checkpointed(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        parts = zip(hidden.split(PART), targets.split(PART), strict=True)
        sums = [checkpoint(part, rows, weight, wanted, use_reentrant=False) for rows, wanted in parts]
        return torch.stack([each for each in sums if isinstance(each, Tensor)]).sum() / len(targets)

    def chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        if not hasattr(F, "linear_cross_entropy"):
            raise InputError("this torch has no linear_cross_entropy: 2.13 has it")
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=PART, chunking_method=None)
        return F.linear_cross_entropy(hidden, weight, targets, options=options)

    return {"whole": whole, "checkpointed": checkpointed, "torch": chunked}[how]
