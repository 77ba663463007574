"""Folders for what is not committed: resumable state, finished artifacts, downloads.

    work(), store()             # $MLS_WORK, $MLS_STORE; by default work/ and .store/
    home()                      # the folder that relative ones are below

DVC runs a queued experiment in a copy of the working tree and deletes the copy when the experiment fails. State and
finished artifacts must outlive it, so both live in the main working tree.
"""

from __future__ import annotations

import os
from pathlib import Path

from mls.runtime.errors import MlsError


def home() -> Path:
    """The working tree; in a DVC experiment's copy of it, the main working tree.

    `dvc exp run --queue` and `--temp` make their copies at ``.dvc/tmp/exps/<random name>``. The path is checked, not
    DVC_ROOT, because a person who looks into a copy from a shell does not have that variable.
    """
    for folder in Path.cwd().parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return Path()


def work() -> Path:
    """Resumable state by id: ``$MLS_WORK``, by default ``work/``."""
    return place("MLS_WORK", "work")


def store() -> Path:
    """Finished artifacts by id: ``$MLS_STORE``, by default ``.store/``."""
    return place("MLS_STORE", ".store")


def place(variable: str, default: str) -> Path:
    """The folder that an environment variable names; a relative one is below `home`."""
    return home() / expanded(os.environ.get(variable) or default, variable)


def expanded(path: str, what: str) -> Path:
    """A path with ``~`` replaced by a home folder.

    Raises:
        MlsError: there is no such home; the message names the path as ``what``.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise MlsError(f"{what} is {path!r}: {error}") from error
