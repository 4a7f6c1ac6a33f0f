"""The one error type for what a user can mend; the command line prints it without a traceback and exits with 2."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class InputError(ValueError):
    """Something given to the library cannot be used: the message says what was given, what was expected, what to do."""


def reason(error: BaseException) -> str:
    """The first line of what an error of another library says, or its kind where it says nothing."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def first_few(texts: Sequence[str], most: int = 5) -> str:
    """In one line: the first of them, and how many more there are."""
    more = f"; and {len(texts) - most} more" if len(texts) > most else ""
    return "; ".join(texts[:most]) + more


def did_you_mean(given: str, known: Iterable[str], prefix: str = "") -> str:
    """For the end of an error about a name that is not known: "; did you mean NAME?", or nothing where none is near.

    prefix: what stands before all of them when one is shown.
    """
    near = get_close_matches(given, [*known], 1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


class NotFiniteError(InputError):
    """NaN or infinity where only numbers make sense; in a training it means that the training has diverged."""


class DivergedError(InputError):
    """Training met a number that is not finite: the message says the step, where, and the last good checkpoint."""


class LostRankError(InputError):
    """A process that trained with this one is gone: the message says which, its step and what to go on from."""
