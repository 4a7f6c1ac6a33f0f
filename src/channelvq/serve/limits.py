"""What a server lets its clients ask for."""

from dataclasses import dataclass

from channelvq.checks import check_whole_number
from channelvq.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Bounds of one request and of all that wait.

    images: of a request. waiting: images that wait for a free row; more are refused with 429. batches: of 8 images that
    run at once, with guidance and without. prompt_characters, body_bytes: of a request. seconds: until it must be
    answered. body_seconds: until a client must have sent it. Raises InputError for a bound below its least.
    """

    images: int = 10
    waiting: int = 128
    batches: int = 1
    prompt_characters: int = 4000
    body_bytes: int = 16 * 2**20
    seconds: float = 120.0
    body_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("images", "waiting", "batches", "prompt_characters", "body_bytes"):
            check_whole_number(name, getattr(self, name), 1)
        for name in ("seconds", "body_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: expected a number above 0, got {getattr(self, name)!r}")
