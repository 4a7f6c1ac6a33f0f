"""Images that come and go while others are drawn: continuous batching, in which an image joins at the next token.

    join --> a free one of 8 slots --step: a token for every image there is--> is done, or leaves --> the slot is free

An image has the ids that `CAR.generate` gives it alone: it goes through the same `Rows` and the same `choose`, always
for 8 rows, and has its own settings and random numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from channelvq.car.choice import choose
from channelvq.car.group import filled, guided_logits, sampling_mode, text_rows, uniforms
from channelvq.car.model import CAR
from channelvq.car.request import Request
from channelvq.car.rows import Rows, can_have_rows
from channelvq.car.settings import SamplingSettings
from channelvq.car.text import TextBatch, together
from channelvq.errors import InputError
from channelvq.nn.modes import CHUNK_ROWS


@dataclass(eq=False)
class Drawing:
    """An image on its way. ids: the tokens so far. error: why it cannot go on."""

    text: TextBatch
    against: TextBatch
    uniforms: Float64[Tensor, " C"]
    settings: SamplingSettings
    num_tokens: int
    ids: list[int] = field(default_factory=list)
    error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left to draw."""
        return len(self.ids) >= self.num_tokens or self.error is not None


def drawings(request: Request, settings: SamplingSettings, num_tokens: int) -> Iterator[Drawing]:
    """The images of a request, each for itself and with its own seed. num_tokens: C of the model."""
    for i, numbers in enumerate(uniforms(request.seeds, num_tokens)):
        part = request.part(slice(i, i + 1))
        yield Drawing(part.text, part.against, numbers, replace(settings, seed=request.seeds[i]), request.num_tokens)


class Slots:
    """Up to 8 images, all with guidance or all without, a token each a step.

    Raises InputError for a backbone that keeps something else than keys and values.
    """

    def __init__(self, model: CAR, guided: bool) -> None:
        if not can_have_rows(model):
            raise InputError(
                f"a {model.backbone.config.model_type} keeps something else than keys and values of all tokens, so its "
                "images cannot join others on their way; serve the export of this generator (`cvq export`)"
            )
        self.model, self.guided = model, guided
        self.rows = Rows(model, guided)
        self.places: list[Drawing | None] = [None] * CHUNK_ROWS
        self.begun: set[int] = set()  # places whose prompt is in the rows

    def __len__(self) -> int:
        return sum(drawing is not None for drawing in self.places)

    @property
    def free(self) -> int:
        """Images that can join."""
        return CHUNK_ROWS - len(self)

    def join(self, drawing: Drawing) -> None:
        """Take the lowest free place; drawn from the next step on."""
        self.places[self.places.index(None)] = drawing

    def leave(self, drawing: Drawing) -> None:
        """Give its place back, done or not; one that is not here is no error."""
        if drawing in self.places:
            place = self.places.index(drawing)
            self.places[place] = None
            self.begun.discard(place)

    def step(self) -> list[Drawing]:
        """One more token for every image; those that are done or failed leave. Gives all that took part."""
        there = [drawing for drawing in self.places if drawing]
        with sampling_mode(self.model, True):
            new = [place for place, drawing in enumerate(self.places) if drawing and place not in self.begun]
            if self.begun:
                self._go_on(sorted(self.begun))
            if new:
                self._begin(new)
        for drawing in there:
            if drawing.done:
                self.leave(drawing)
        return there

    def _go_on(self, places: list[int]) -> None:
        last, going = torch.zeros(CHUNK_ROWS, dtype=torch.int64), torch.zeros(CHUNK_ROWS, dtype=torch.bool)
        for place in places:
            last[place], going[place] = self._at(place).ids[-1], True
        hidden = self.rows.step(last.to(self.model.device), going.to(self.model.device))
        self._draw(self.model.logits(hidden, self.rows.table)[:, 0], {place: place for place in places})

    def _begin(self, places: list[int]) -> None:
        new = [self._at(place) for place in places]
        text, against = together([d.text for d in new]), together([d.against for d in new])
        hidden = self.rows.begin(places, text_rows(text, against if self.guided else None, CHUNK_ROWS))
        self._draw(self.model.logits(hidden, self.rows.table)[:, 0], {place: i for i, place in enumerate(places)})
        self.begun.update(places)

    def _draw(self, logits: Float[Tensor, "R N"], rows: dict[int, int]) -> None:
        """Choose a token for each place from the row of logits that `rows` names."""
        alike: dict[SamplingSettings, list[int]] = {}
        for place in rows:  # their seeds are in the random numbers already
            alike.setdefault(replace(self._at(place).settings, seed=0), []).append(place)
        for settings, places in alike.items():
            drawn = [self._at(place) for place in places]
            numbers = torch.stack([d.uniforms[len(d.ids)] for d in drawn]).to(logits.device)
            guided = guided_logits(logits, settings)
            own = guided[torch.tensor([rows[place] for place in places], device=logits.device)]
            try:
                chosen = choose(filled(own, CHUNK_ROWS), filled(numbers, CHUNK_ROWS), settings).tolist()
            except InputError as error:
                for drawing in drawn:
                    drawing.error = error
                continue
            for drawing, token in zip(drawn, chosen, strict=False):
                drawing.ids.append(token)

    def _at(self, place: int) -> Drawing:
        drawing = self.places[place]
        if drawing is None:
            raise LookupError(f"no image at place {place}")
        return drawing
