"""Sampling from CAR: in groups of a fixed number of rows, with a cache, so that an image depends on nothing but itself.

    8 prompts --text slot + marker--> backbone, fills the cache --> logits of x_1 --choose--> x_1
                                        ^   one new input a row                                |
                                        +---------------- table[x_k] <-------------------------+

What makes an image independent of its neighbours, of `num_tokens` and of being interrupted (exact=True): a group has
always 8 rows (8 more with guidance), the text slot always T tokens, the cache at token k always T + k entries, a prefix
to continue from goes in token by token, as it came out, and attention runs on kernels whose bits do not depend on the
row. Each image has its own random numbers, one a token.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Float64, Int64
from PIL import Image
from torch import Tensor

from channelvq.car.backbone import run_backbone
from channelvq.car.cache import roomy_cache
from channelvq.car.choice import Choice, choose, guide
from channelvq.car.compiled import CompiledStep
from channelvq.car.text import TextBatch
from channelvq.checks import check_whole
from channelvq.errors import InputError
from channelvq.nn.modes import CHUNK_ROWS, evaluating, row_independent_kernels
from channelvq.nn.processor import check_compiler
from channelvq.tokenizer import CVQTokenizer

if TYPE_CHECKING:
    from channelvq.car.model import CAR


@dataclass(frozen=True, eq=False)
class Generation:
    """Images as ids. ids: (B, k) in 0..N-1. seeds: of each image. images: decoded when first asked for."""

    ids: Int64[Tensor, "B k"]
    seeds: tuple[int, ...]
    tokenizer: CVQTokenizer = field(repr=False)

    @cached_property
    def images(self) -> list[Image.Image]:
        """The images of the k tokens there are, as PIL."""
        return self.tokenizer.detokenize(self.ids)


@dataclass(frozen=True, eq=False)
class _Job:
    """A checked request."""

    text: TextBatch
    seeds: tuple[int, ...]
    num_tokens: int
    choice: Choice
    prefix: Int64[Tensor, "B p"]

    def part(self, rows: slice) -> "_Job":
        text = TextBatch(self.text.ids[rows], self.text.mask[rows])
        return _Job(text, self.seeds[rows], self.num_tokens, self.choice, self.prefix[rows])


def generate(
    model: "CAR",
    prompts: str | Sequence[str],
    choice: Choice,
    *,
    seed: int,
    num_tokens: int | None,
    exact: bool,
    use_cache: bool,
    compiled: bool,
    prefix_ids: Tensor | None,
) -> Generation:
    """See `CAR.generate`."""
    _check_speed(model, exact, use_cache, compiled)
    job = _prepare(model, prompts, choice, seed, num_tokens, prefix_ids)
    if not use_cache:
        with evaluating(model):
            ids = torch.cat([_naive(model, job.part(slice(i, i + 1))) for i in range(len(job.text))])
        return Generation(ids, job.seeds, model.tokenizer)
    parts = []
    for group in _groups(model, job, exact, compiled):
        group.advance_to(job.num_tokens)
        parts.append(group.result())
    return Generation(torch.cat(parts), job.seeds, model.tokenizer)


def stream(
    model: "CAR",
    prompts: str | Sequence[str],
    choice: Choice,
    *,
    every: int,
    seed: int,
    num_tokens: int | None,
    exact: bool,
    prefix_ids: Tensor | None,
) -> Iterator[Generation]:
    """See `CAR.stream`: checked at once, drawn as it is read."""
    every = check_whole("every", every, 1, what="a whole number of tokens")
    job = _prepare(model, prompts, choice, seed, num_tokens, prefix_ids)
    return _stream(model, job, every, exact)


def _check_speed(model: "CAR", exact: bool, use_cache: bool, compiled: bool) -> None:
    if compiled and (exact or not use_cache):
        raise InputError("compiled=True goes with exact=False and use_cache=True: compiled kernels are others")
    if compiled:
        check_compiler("compiled=True", model.device.type != "cpu")


def _stream(model: "CAR", job: _Job, every: int, exact: bool) -> Iterator[Generation]:
    groups = list(_groups(model, job, exact))
    have = job.prefix.shape[1]
    for length in [*range(have - have % every + every, job.num_tokens, every), job.num_tokens]:
        for group in groups:
            group.advance_to(length)
        yield Generation(torch.cat([group.result() for group in groups]), job.seeds, model.tokenizer)


@torch.no_grad()
def score(model: "CAR", prompts: str | Sequence[str], ids: Any, *, exact: bool) -> Float[Tensor, "B k"]:
    """See `CAR.score`."""
    text = encode_prompts(model, prompts)
    ids = _same_count(model.tokenizer.check_ids(ids), len(text), "score")
    rows = CHUNK_ROWS if exact else len(text)
    parts = []
    with evaluating(model), _kernels(model, exact):
        for start in range(0, len(text), rows):
            end = min(start + rows, len(text))
            chosen = _filled(torch.arange(start, end, device=model.device), rows)
            parts.append(-model(text.ids[chosen], text.mask[chosen], ids[chosen]).nats[: end - start])
    return torch.cat(parts)


def encode_prompts(model: "CAR", prompts: str | Sequence[str]) -> TextBatch:
    """Prompts in the model's text slot; a single one is a batch of one."""
    if not isinstance(prompts, Iterable):
        raise InputError(f"prompts: expected a text or a list of at least one, got {prompts!r:.80}")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise InputError("prompts: expected a text or a list of at least one, got an empty list")
    return model.text.encode(prompts, model.config.max_text_tokens).to(model.device)


def _kernels(model: "CAR", exact: bool) -> AbstractContextManager[object]:
    return row_independent_kernels(model.device) if exact else nullcontext()


class _Group:
    """Images that are drawn together, filled up to a fixed number of rows with copies of the first."""

    def __init__(self, model: "CAR", job: _Job, rows: int, exact: bool, compiled: bool = False) -> None:
        self.model, self.choice, self.exact, self.compiled = model, job.choice, exact, compiled
        self.size = len(job.text)
        self.prefix = _filled(job.prefix, rows)
        self.uniforms = _filled(_uniforms(model, job.seeds), rows)
        text_ids, text_mask = _filled(job.text.ids, rows), _filled(job.text.mask, rows)
        if job.choice.guided:
            text_ids = torch.cat([text_ids, text_ids])
            text_mask = torch.cat([text_mask, torch.zeros_like(text_mask)])
        if not exact and not compiled:  # drop the columns of the slot that are padding in every row
            used = int(text_mask.sum(1).max())
            text_ids, text_mask = (t[:, t.shape[1] - used :] for t in (text_ids, text_mask))
        self.text_ids = text_ids
        self.mask = torch.cat([text_mask, text_mask.new_ones(len(text_mask), model.num_tokens)], dim=1)
        self.ids = self.prefix[:, :0]
        self.cache = roomy_cache(model.backbone.config, self.mask.shape[1])
        self.padded = not bool(text_mask.all())
        self.num_fed = 0  # image inputs in the cache, the marker included
        self.table = model.image_table()
        self.step: CompiledStep | None = None

    @torch.no_grad()
    def advance_to(self, length: int) -> None:
        """Draw tokens until there are `length`."""
        with evaluating(self.model), _kernels(self.model, self.exact):
            given = min(self.prefix.shape[1], length)
            self.ids = torch.cat([self.ids, self.prefix[:, self.ids.shape[1] : given]], dim=1)
            while (k := self.ids.shape[1]) < length:
                chosen = choose(self.next_logits(), self.uniforms[:, k], self.choice)
                self.ids = torch.cat([self.ids, chosen[:, None]], dim=1)

    def next_logits(self) -> Float[Tensor, "rows N"]:
        """Guided logits of the token after `ids`."""
        logits = self._logits()
        if not self.choice.guided:
            return logits
        conditional, unconditional = logits.chunk(2)
        return guide(conditional, unconditional, self.choice.guidance_scale)

    def _logits(self) -> Float[Tensor, "R N"]:
        known = self.ids.shape[1] + 1
        if self.compiled and self.num_fed == known - 1 > 0:
            self.step = self.step or CompiledStep(
                self.model, self.cache, self.mask, self.text_ids.shape[1] + self.num_fed
            )
            return self.step(self._inputs(known), self.table)
        return self.model.logits(self._feed(known)[:, -1:], self.table)[:, 0]

    def _feed(self, known: int) -> Float[Tensor, "R n H"]:
        # Inputs that the cache lacks: one after each step, all of a given prefix. Exact: one by one, as when they were
        # drawn; in one piece they would have other bits.
        hidden = torch.empty(0)
        for end in range(self.num_fed + 1, known + 1) if self.exact else [known]:
            inputs, mask = self._inputs(end), self.mask[:, : self.text_ids.shape[1] + end]
            hidden = run_backbone(self.model.backbone, inputs, mask, self.cache, padded=self.padded or self.exact)
        return hidden

    def _inputs(self, end: int) -> Float[Tensor, "R n E"]:
        """The inputs that the cache lacks of the first `end`, with the text before the first."""
        model = self.model
        inputs = model.image_inputs(self.ids[:, : end - 1], self.num_fed, self.table)
        if self.choice.guided:
            inputs = torch.cat([inputs, inputs])
        if self.num_fed == 0:
            text = model.text_embedding(self.text_ids)
            inputs = torch.cat([text, inputs.to(text.dtype)], dim=1)
        self.num_fed = end
        return inputs

    def result(self) -> Int64[Tensor, "B k"]:
        """The ids so far, without the rows that fill the group."""
        return self.ids[: self.size].clone()


def _groups(model: "CAR", job: _Job, exact: bool, compiled: bool = False) -> Iterator[_Group]:
    rows = CHUNK_ROWS if exact else len(job.text)
    for start in range(0, len(job.text), rows):
        yield _Group(model, job.part(slice(start, start + rows)), rows, exact, compiled)


@torch.no_grad()
def _naive(model: "CAR", job: _Job) -> Int64[Tensor, "1 k"]:
    """One image without cache, padding or neighbours: the whole sequence again for every token."""
    ids, uniforms = job.prefix, _uniforms(model, job.seeds)
    text_ids = job.text.ids[job.text.mask][None]
    nothing = text_ids[:, :0]
    for k in range(ids.shape[1], job.num_tokens):
        logits = _whole_sequence_logits(model, text_ids, ids)
        if job.choice.guided:
            logits = guide(logits, _whole_sequence_logits(model, nothing, ids), job.choice.guidance_scale)
        ids = torch.cat([ids, choose(logits, uniforms[:, k], job.choice)[:, None]], dim=1)
    return ids


def _whole_sequence_logits(model: "CAR", text_ids: Tensor, ids: Tensor) -> Float[Tensor, "1 N"]:
    text = model.text_embedding(text_ids)
    inputs = torch.cat([text, model.image_inputs(ids).to(text.dtype)], dim=1)
    mask = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    return model.logits(run_backbone(model.backbone, inputs, mask)[:, -1:])[:, 0]


def _uniforms(model: "CAR", seeds: Sequence[int]) -> Float64[Tensor, "B C"]:
    # Drawn on the CPU, all C of them: the same numbers on every device and whatever the number of tokens.
    rows = [
        torch.rand(model.num_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows).to(model.device)


def _filled(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows[:1].expand(count - len(rows), *rows.shape[1:])])


def _prepare(
    model: "CAR",
    prompts: str | Sequence[str],
    choice: Choice,
    seed: int,
    num_tokens: int | None,
    prefix_ids: Any,
) -> _Job:
    text = encode_prompts(model, prompts)
    choice.check(model.config.caption_dropout)
    most = model.num_tokens
    num_tokens = most if num_tokens is None else check_whole("num_tokens", num_tokens, 1, most)
    seed = check_whole("seed", seed, 0)
    if seed > 2**63 - len(text):
        raise InputError(f"seed: expected a whole number of at most 2**63 - {len(text)}, got {seed}")
    seeds = tuple(range(seed, seed + len(text)))
    return _Job(text, seeds, num_tokens, choice, _check_prefix(model, prefix_ids, len(text), num_tokens))


def _check_prefix(model: "CAR", prefix_ids: Any, count: int, num_tokens: int) -> Int64[Tensor, "B p"]:
    if prefix_ids is None or _is_empty(prefix_ids, count):
        return torch.empty(count, 0, dtype=torch.int64, device=model.device)
    prefix = _same_count(model.tokenizer.check_ids(prefix_ids), count, "prefix_ids")
    if prefix.shape[1] > num_tokens:
        raise InputError(
            f"prefix_ids: {prefix.shape[1]} tokens are more than num_tokens {num_tokens}, which counts the prefix"
        )
    return prefix


def _same_count(ids: Tensor, count: int, name: str) -> Tensor:
    if len(ids) != count:
        raise InputError(f"{name}: {len(ids)} rows of ids for {count} prompts; give one for each prompt")
    return ids


def _is_empty(ids: Any, count: int) -> bool:
    """Whether they are the first 0 tokens of so many images, or of one."""
    try:
        shape = tuple(torch.as_tensor(ids).shape)
    except (TypeError, ValueError, RuntimeError):
        return False
    return shape == (count, 0) or (count == 1 and shape == (0,))
