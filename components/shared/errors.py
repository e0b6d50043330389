"""Kinds of errors. Their text is for the user: the value, what is allowed, what to do.

Any other exception is a fault in medloop: its traceback is shown, and it is not remembered.
"""

from __future__ import annotations


class MedloopError(Exception):
    """Base of the errors that medloop raises deliberately."""

    exit_code = 1


class RefusedError(MedloopError, ValueError):
    """The input is invalid; the error is remembered under the work key and raised again for the same input."""


class NotFoundError(RefusedError, LookupError):
    """A name refers to something that does not exist."""


class UsageError(MedloopError, ValueError):
    """A command, parameter or setting is invalid. Nothing was started."""

    exit_code = 2


class UnavailableError(MedloopError, RuntimeError):
    """Something other than the input prevents the work; a later attempt may succeed."""


class DamagedError(UnavailableError, ValueError):
    """A record or an object in the store is damaged or was changed."""


def exit_code(error: BaseException) -> int:
    """Return the exit status of a command that fails with this error."""
    return error.exit_code if isinstance(error, MedloopError) else 1


def is_foreseen(error: BaseException) -> bool:
    """Return whether to show the error's text without a traceback."""
    return isinstance(error, MedloopError | OSError)
