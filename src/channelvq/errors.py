"""The one error type for what a user can mend; the command line prints it without a traceback and exits with 2."""


class InputError(ValueError):
    """Something given to the library cannot be used: the message says what was given, what was expected, what to do."""


class DivergedError(InputError):
    """Training met a number that is not finite: the message says the step, where, and the last good checkpoint."""
