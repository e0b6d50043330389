"""The kinds of errors. Their text is a sentence for the user: the value, what is allowed, what to do.

Anything else that is raised is a fault in medloop: its traceback is shown, and nothing remembers it.
"""

from __future__ import annotations


class MedloopError(Exception):
    """Base of the errors that medloop raises deliberately."""

    exit_code = 1


class RefusedError(MedloopError, ValueError):
    """The input is bad, and the same input will be refused again: remembered under the work key."""


class NotFoundError(RefusedError, LookupError):
    """What was named does not exist."""


class UsageError(MedloopError, ValueError):
    """The command, a parameter or a setting is wrong. Nothing was started."""

    exit_code = 2


class UnavailableError(MedloopError, RuntimeError):
    """Something outside of the input is missing or in the way, and may be there next time."""


class DamagedError(UnavailableError, ValueError):
    """A record or an object in the store is damaged or was changed."""


def exit_code(error: BaseException) -> int:
    """Return the exit status of a command that this error ends."""
    return error.exit_code if isinstance(error, MedloopError) else 1


def is_foreseen(error: BaseException) -> bool:
    """Return whether the error's own text is what a user needs, without a traceback."""
    return isinstance(error, MedloopError | OSError)
