"""Images that are drawn together: the rows of a batch, their cache, and the next token of each.

    text slot + marker --> backbone, fills the cache --> logits of x_1 --choose--> x_1
                             ^   one new input a row                                |
                             +---------------- table[x_k] <-------------------------+

B prompts, rows >= B with the copies that fill the group up, R = rows, or 2 rows with guidance (the second half with no
prompt or a negative one), T text slot, C image tokens, N codes, E embedding, H hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from channelvq.car.backbone import run_backbone
from channelvq.car.cache import roomy_cache
from channelvq.car.choice import choose, guide
from channelvq.car.compiled import CompiledStep
from channelvq.car.model import CAR
from channelvq.car.request import Request
from channelvq.car.rows import Rows, can_have_rows
from channelvq.car.settings import SamplingSettings
from channelvq.car.text import TextBatch
from channelvq.nn.modes import evaluating, row_independent_kernels


@contextmanager
def sampling_mode(model: CAR, exact: bool) -> Iterator[None]:
    """No gradients, no dropout and, where `exact`, kernels whose bits do not depend on the row."""
    with torch.no_grad(), evaluating(model), row_independent_kernels(model.device) if exact else nullcontext():
        yield


class Group:
    """The images of a request, filled up to a fixed number of rows with copies of the first. exact: see `Sampler`."""

    def __init__(
        self, model: CAR, settings: SamplingSettings, request: Request, rows: int, *, exact: bool, compiled: bool
    ) -> None:
        self.model, self.settings, self.exact, self.compiled = model, settings, exact, compiled
        self.size = len(request)
        self.prefix = filled(request.prefix, rows)
        self.uniforms = filled(uniforms(request.seeds, model.num_tokens).to(model.device), rows)
        text = text_rows(request.text, request.against if settings.guided else None, rows)
        text_ids, text_mask = text.ids, text.mask
        if not exact and not compiled:  # drop the columns of the slot that are padding in every row
            used = int(text_mask.sum(1).max())
            text_ids, text_mask = (t[:, t.shape[1] - used :] for t in (text_ids, text_mask))
        self.text_ids = text_ids
        self.mask = torch.cat([text_mask, text_mask.new_ones(len(text_mask), model.num_tokens)], dim=1)
        # Without padding no attention mask is needed; but exact groups take the same kernels whatever their prompts.
        self.masked = exact or not bool(text_mask.all())
        self.ids = self.prefix[:, :0]
        self.cache = roomy_cache(model.backbone.config, self.mask.shape[1])
        self.num_fed = 0  # image inputs in the cache, the marker included
        self.table = model.image_table()
        self.step: CompiledStep | None = None
        self.text = text
        self.rows = Rows(model, settings.guided) if exact and can_have_rows(model) else None

    def advance_to(self, length: int) -> Int64[Tensor, "B length"]:
        """Draw tokens until there are `length`; gives the ids so far, without the rows that fill the group."""
        with sampling_mode(self.model, self.exact):
            given = min(self.prefix.shape[1], length)
            self.ids = torch.cat([self.ids, self.prefix[:, self.ids.shape[1] : given]], dim=1)
            while (k := self.ids.shape[1]) < length:
                chosen = choose(self.next_logits(), self.uniforms[:, k], self.settings)
                self.ids = torch.cat([self.ids, chosen[:, None]], dim=1)
        return self.ids[: self.size].clone()

    def next_logits(self) -> Float[Tensor, "rows N"]:
        """Guided logits of the token after `ids`."""
        return guided_logits(self._logits(self.ids.shape[1] + 1), self.settings)

    def _logits(self, num_inputs: int) -> Float[Tensor, "R N"]:
        """After the first `num_inputs` image inputs."""
        if self.rows is not None:
            return self.model.logits(self._feed_rows(self.rows, num_inputs), self.table)[:, 0]
        if self.compiled and self.num_fed == num_inputs - 1 > 0:  # the compiled step takes one input, after the text
            have = self.text_ids.shape[1] + self.num_fed
            self.step = self.step or CompiledStep(self.model, self.cache, self.mask, have)
            logits = self.step(self._inputs(num_inputs), self.table)
            self.num_fed = num_inputs
            return logits
        return self.model.logits(self._feed(num_inputs)[:, -1:], self.table)[:, 0]

    def _feed_rows(self, rows: Rows, num_inputs: int) -> Float[Tensor, "R 1 H"]:
        hidden = torch.empty(0)  # as in `_feed`
        for number in range(self.num_fed, num_inputs):
            first = number == 0
            hidden = rows.begin(range(len(self.ids)), self.text) if first else rows.step(self.ids[:, number - 1])
            self.num_fed = number + 1
        return hidden

    def _feed(self, num_inputs: int) -> Float[Tensor, "R n H"]:
        # Inputs that the cache lacks: one after each step, all of a given prefix. Exact: one by one, as when they were
        # drawn; in one piece they would have other bits.
        hidden = torch.empty(0)  # there is always an input that the cache lacks: that of the last token
        for end in range(self.num_fed + 1, num_inputs + 1) if self.exact else [num_inputs]:
            mask = self.mask[:, : self.text_ids.shape[1] + end]
            hidden = run_backbone(self.model.backbone, self._inputs(end), mask, self.cache, padded=self.masked)
            self.num_fed = end
        return hidden

    def _inputs(self, end: int) -> Float[Tensor, "R n E"]:
        """The inputs that the cache lacks of the first `end`, with the text before the first."""
        inputs = self.model.image_inputs(self.ids[:, : end - 1], self.num_fed, self.table)
        if self.settings.guided:
            inputs = torch.cat([inputs, inputs])
        if self.num_fed == 0:
            text = self.model.text_embedding(self.text_ids)
            inputs = torch.cat([text, inputs.to(text.dtype)], dim=1)
        return inputs


def guided_logits(logits: Float[Tensor, "R N"], settings: SamplingSettings) -> Float[Tensor, "rows N"]:
    """What is drawn from: with guidance the second half of the rows is that without a prompt."""
    if not settings.guided:
        return logits
    conditional, unconditional = logits.chunk(2)
    return guide(conditional, unconditional, settings.guidance_scale)


def text_rows(text: TextBatch, against: TextBatch | None, count: int) -> TextBatch:
    """The prompts, filled up to `count` rows, and with guidance as many rows of what it leads away from after them."""
    if against is None:
        return TextBatch(filled(text.ids, count), filled(text.mask, count))
    # Where there is no text, the ids of the prompt: masked, and the same bits as ever.
    ids = torch.where(against.mask, against.ids, text.ids)
    parts = TextBatch(text.ids, text.mask), TextBatch(ids, against.mask)
    return TextBatch(*(torch.cat([filled(getattr(p, name), count) for p in parts]) for name in ("ids", "mask")))


def filled(rows: Tensor, count: int) -> Tensor:
    """`rows`, (B, ...), with copies of the first after them: (count, ...)."""
    return torch.cat([rows, rows[:1].expand(count - len(rows), *rows.shape[1:])])


def uniforms(seeds: Sequence[int], num_tokens: int) -> Float64[Tensor, "B C"]:
    """The random numbers of each image, one a token.

    Drawn on the CPU, all C of them: the same numbers on every device and whatever the number of tokens.
    """
    return torch.stack([_uniforms_of(seed, num_tokens) for seed in seeds])


def _uniforms_of(seed: int, num_tokens: int) -> Float64[Tensor, " C"]:
    """Torch's generator takes 32 bits of a seed: those above draw numbers of their own, which are added modulo 1."""
    high, low = divmod(seed, 2**32)
    numbers = torch.rand(num_tokens, generator=torch.Generator().manual_seed(low), dtype=torch.float64)
    if high:
        others = torch.rand(2 * num_tokens, generator=torch.Generator().manual_seed(high), dtype=torch.float64)
        numbers = (numbers + others[num_tokens:]) % 1.0  # the later ones: (high, low) is not (low, high)
    return numbers
