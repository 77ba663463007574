"""Errors that are meant for people: one clear line, a non-zero exit code, nothing half-written."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the state is saved, the same command goes on from there


class MlsError(Exception):
    """Something a person can mend: says what is wrong, where, and what to do."""


class DeterministicError(MlsError):
    """A failure that the same inputs and the same code will always meet again.

    It is recorded in ``work/<id>/failed.json``; the stage refuses to spend time on it again
    until ``mls retry ID``, or until the code has changed.
    """


class DamagedArtifact(MlsError):
    """An artifact whose files are missing, of another size, or of another content."""


class Interrupted(MlsError):
    """The stage was asked to stop and has saved its state (exit code 75)."""
