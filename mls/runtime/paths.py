"""Where what is not committed lives: resumable state, finished artifacts, downloads.

    work(), store()             # $MLS_WORK, $MLS_STORE, else work/ and .store/
    home()                      # what relative ones are below

A queued DVC experiment runs in a copy of the working tree that DVC deletes when it fails. Its state must outlive it, so
that the next try resumes, and what is finished must not be made again: both are the main working tree's.
"""

from __future__ import annotations

import os
from pathlib import Path

from mls.runtime.errors import MlsError


def home() -> Path:
    """The folder that relative places are below: the working tree or, of a DVC experiment's copy, the main one.

    `dvc exp run --queue` and `--temp` make their copies at ``.dvc/tmp/exps/<random name>``. DVC tells its commands the
    main tree as DVC_ROOT too, but people who look into a copy from a shell have only its path.
    """
    for folder in Path.cwd().parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return Path()


def work() -> Path:
    """Resumable state by id: ``$MLS_WORK``, else ``work/``."""
    return place("MLS_WORK", "work")


def store() -> Path:
    """Finished artifacts by id: ``$MLS_STORE``, else ``.store/``."""
    return place("MLS_STORE", ".store")


def is_shared(place: Path) -> bool:
    """Whether a place is outside this working tree, so that others may use it too."""
    return not place.resolve().is_relative_to(Path.cwd())


def expanded(path: str, what: str) -> Path:
    """A path whose ``~`` is a home folder.

    Raises:
        MlsError: there is no such home; ``what`` names the path.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise MlsError(f"{what} is {path!r}: {error}") from error


def place(variable: str, default: str) -> Path:
    """A folder that an environment variable names; a relative one is below `home`."""
    return home() / expanded(os.environ.get(variable) or default, variable)
