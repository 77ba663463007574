"""Errors for people: the command prints one line, exits with a non-zero code, and leaves nothing half-written."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the state is saved, and the same command resumes from it


class MlsError(Exception):
    """Something a person can fix. The message says what is wrong, where, and what to do."""


class DeterministicError(MlsError):
    """A failure that the same inputs and the same code always meet again.

    It is recorded in ``work/<id>/failed.json``. The stage then refuses to run again until ``mls retry ID`` or until the
    code has changed.
    """


class DamagedArtifact(MlsError):
    """An artifact with a file that is missing, or whose size or content is wrong."""


class Interrupted(BaseException):
    """The stage was asked to stop and has saved what it saves (exit code 75).

    Not an `Exception`: a signal's handler may raise it anywhere, also where any error of a library is explained.
    """
