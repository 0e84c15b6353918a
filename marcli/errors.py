"""Errors in the user's words. Each message says what was wrong, where, and what to do."""

UNEXPECTED = "(unexpected; MARCLI_TRACEBACK=1 shows where)"  # ends the sentence of any other error


class MarcliError(Exception):
    """Something failed that the user can act on; the command ends with exit code 1."""


class UsageError(MarcliError):
    """The command line or the recipe is wrong; exit code 2, before any expensive work."""


class StoppedError(BaseException):
    """A signal asked to stop and everything is saved; exit code 75.

    No `Exception`: it may be raised anywhere, also inside a library that goes on after any of those.
    """
