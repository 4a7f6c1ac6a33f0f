"""What the page's buttons do, without the page: from what a visitor chose to HTML. One for all visitors."""

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache

import torch
from jaxtyping import Float64
from PIL import Image
from torch import Tensor

from channelvq.app import codebook, html
from channelvq.app.drawing import Step, draw, unknown_words
from channelvq.app.tokens import (
    Tokenized,
    changed,
    contributions,
    file_of,
    prefix,
    read_picture,
    rivals,
    tokenized,
)
from channelvq.app.words import note
from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.data.drawn.scenes import SMALLEST_SIZE, SceneSource
from channelvq.images import to_pil
from channelvq.tokenizer import CVQTokenizer

ATLAS = 48  # codes of a token that are shown
_GREY = (128, 128, 128)


class Studio:
    """Actions of the page on a generator and a tokenizer: its own where no other is given."""

    def __init__(self, car: CAR, tokenizer: CVQTokenizer | None = None) -> None:
        self.car, self.tokenizer = car, tokenizer or car.tokenizer
        self._contributions = lru_cache(64)(lambda ids: contributions(self.tokenizer, ids))

    @cached_property
    def shares(self) -> Float64[Tensor, "K N"] | None:
        """How often each code stands at each place, where that is known."""
        return codebook.shares(self.tokenizer)

    # Tokenize

    def example(self, number: int) -> Tokenized:
        """A scene drawn by our code, of a kind that is kept from training."""
        source = SceneSource(size=max(SMALLEST_SIZE, self.tokenizer.image_size), split="test", sprites="shapes")
        drawn = source.sample(number % len(source), torch.Generator().manual_seed(number)).image
        return tokenized(self.tokenizer, to_pil(drawn[None])[0])

    def upload(self, path: str) -> Tokenized:
        """A visitor's picture; InputError where it is none."""
        return tokenized(self.tokenizer, read_picture(path))

    def compared(self, of: Tokenized, length: int) -> str:
        """A prefix beside the original and other codecs."""
        ours = prefix(self.tokenizer, of, length)
        return html.compared(of, ours, rivals(of, ours.num_bytes), length, file_of(self.tokenizer, of, length))

    def tiles(self, of: Tokenized, length: int) -> str:
        """What each token adds."""
        return html.tiles(self._contributions(of.ids), of.ids, length)

    def changed(self, of: Tokenized, number: int, code: int | None) -> str:
        """Another code, or none, in the place of a token."""
        was = of.ids[number - 1]
        title = f"token {number} removed" if code is None else f"token {number}: {was} → {code}"
        return html.change(changed(self.tokenizer, of.ids, number, code), title)

    # Generate

    def beginning(self, of: Tokenized) -> tuple[int, ...]:
        """A picture in the tokens that the generator writes."""
        own = self.car.tokenizer
        return of.ids if self.tokenizer is own else tokenized(own, of.picture).ids

    def draw(
        self, prompt: str, settings: SamplingSettings, count: int, begin: Sequence[int] = ()
    ) -> Iterator[tuple[str, Step]]:
        """The pictures of a prompt, richer from step to step, each as HTML and as what it is."""
        before: list[tuple[int, Image.Image]] = []
        for step in draw(self.car, prompt, settings, count, begin):
            before.append((step.length, step.pictures[0]))
            yield html.drawn(step, self.car.num_tokens, prompt, before), step

    def warning(self, prompt: str) -> str:
        """What is to be said of a prompt, or nothing."""
        said = unknown_words(self.car, prompt)
        return note(f"⚠ {said}") if said else ""

    # Codebook

    def atlas(self, of: Tokenized | None, number: int) -> tuple[str, str]:
        """The codes that a token likes best, after the tokens of a picture before it; and how many are in use."""
        size = self.tokenizer.image_size
        ids = (of or tokenized(self.tokenizer, codebook.flat(_GREY, size))).ids
        found = codebook.atlas(self.tokenizer, self.shares, ids, number, ATLAS)
        effective = None if self.shares is None else codebook.effective_codes(self.shares)
        return html.atlas(found, self.shares is not None), html.use(effective, self.tokenizer.codebook_size, number)
