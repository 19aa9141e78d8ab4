"""Exceptions for failures that a user can fix.

A message says what is wrong, where (file, line, key, example, peer), what was expected, and what to do. The command
line prints the message of a ``RayL4Error`` without a traceback and exits with its ``exit_code``.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RayL4Error(Exception):
    """Base class: invalid input, a missing resource, or a run that cannot continue."""

    exit_code = 1


class ConfigError(RayL4Error):
    """An experiment file, a cluster profile or a command-line value is invalid."""

    exit_code = 2


class DataError(RayL4Error):
    """A data file is missing, unreadable, or has records that cannot be used."""

    exit_code = 3


class ModelError(RayL4Error):
    """A model or tokeniser cannot be loaded or cannot be used for the task."""

    exit_code = 4


class RunDirectoryError(RayL4Error):
    """A run directory is in use, damaged, on a full disk, or of the wrong kind for the command."""

    exit_code = 5


class ClusterError(RayL4Error):
    """The cluster cannot be reached or lacks the requested resources."""

    exit_code = 6


class SessionLostError(ClusterError):
    """The Ray session that a run uses has died. What the run has on disk is whole; a new session can go on."""


class PeerError(RayL4Error):
    """A student or evaluator died, failed or did not answer in time."""

    exit_code = 7


class PeerLostError(PeerError):
    """A student or evaluator died, hangs, or cannot be reached. Its state within the stage is lost."""


class NonFiniteError(PeerError):
    """A step's loss or gradient is not finite. Its student still has the weights from before the step."""

    def __init__(self, message: str, student: int = 0, stage: int = 0, step: int = 0) -> None:
        # Defaults, because a pickled error is built from its message and then given its attributes.
        super().__init__(message)
        self.student = student
        self.stage = stage
        self.step = step


class DependencyLostError(PeerLostError):
    """A call failed because what it was given is lost with another worker; the one that was called is well."""


def nearest(name: str, known: Iterable[str], none: str = "No other name is known either.") -> str:
    """Return a hint for a message about an unknown name: the closest known name, or else all known names.

    ``none``: the sentence for a place without any names, which says what is missing where.
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(names)}." if names else none


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, short enough for a message; the class if it has no text."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
