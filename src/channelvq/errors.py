"""The one error type for what a user can mend; the command line prints it without a traceback and exits with 2."""


class InputError(ValueError):
    """Something given to the library cannot be used: the message says what was given, what was expected, what to do."""


def reason(error: BaseException) -> str:
    """The first line of what an error of another library says, or its kind where it says nothing."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


class NotFiniteError(InputError):
    """NaN or infinity where only numbers make sense; in a training it means that the training has diverged."""


class DivergedError(InputError):
    """Training met a number that is not finite: the message says the step, where, and the last good checkpoint."""


class LostRankError(InputError):
    """A process that trained with this one is gone: the message says which, its step and what to go on from."""
