"""Pictures from a prompt that get richer token by token, from nothing or from the first tokens of another picture."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from channelvq.app.words import MOST_PICTURES, PROMPT_CHARACTERS
from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.checks import check_whole_number
from channelvq.errors import InputError

STEPS = 16  # pictures on the way


@dataclass(frozen=True, eq=False)
class Step:
    """Pictures on their way. length: their tokens so far. ids: (pictures, length)."""

    length: int
    pictures: list[Image.Image]
    ids: list[list[int]]
    seeds: tuple[int, ...]


def unknown_words(car: CAR, prompt: str) -> str:
    """The warning that the generator has of a prompt; empty where it knows all words."""
    words = car.text.unknown_words(prompt)
    return f"The generator has not learned {', '.join(map(repr, words[:8]))}: it cannot draw that." if words else ""


def draw(
    car: CAR, prompt: str, settings: SamplingSettings, count: int = 1, begin: Sequence[int] = ()
) -> Iterator[Step]:
    """Draw a prompt with the seeds settings.seed, seed + 1, ...; each step has more tokens than the one before.

    begin: the first tokens of all pictures, which another picture gave. Raises InputError for what is out of range.
    """
    count = check_whole_number("pictures", count, 1, MOST_PICTURES)
    if len(prompt) > PROMPT_CHARACTERS:
        raise InputError(f"prompt: {len(prompt)} characters are more than the {PROMPT_CHARACTERS} allowed")
    if len(begin) >= car.num_tokens:
        raise InputError(f"the beginning has {len(begin)} tokens: keep at most {car.num_tokens - 1}")
    every = max(1, (car.num_tokens - len(begin)) // STEPS)
    given = torch.tensor([list(begin)] * count) if begin else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the page shows `unknown_words`
        steps = car.stream(
            [prompt] * count, every, seed=settings.seed, guidance_scale=settings.guidance_scale,
            temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p, prefix_ids=given,
        )  # fmt: skip
    for step in steps:
        yield Step(step.ids.shape[1], step.images, step.ids.tolist(), step.seeds)
