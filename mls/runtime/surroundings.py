"""Where and how a command was started: its folder and its streams.

All folders of a run (`artifacts/`, `.store/`, `work/`) are in the clone's root, so a command that starts in a folder
below works in the root. Paths in its arguments still are below the folder where it was called.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

MARKS = ("params.yaml", "data.lock", "mls")
"""What the root of a clone holds."""
CALLED_FROM = "MLS_CALLED_FROM"
"""Names the folder where a command was called, if that is another than the root."""


def clone_root() -> Path | None:
    """The clone that the current folder is in, or None."""
    here = Path.cwd()
    return next((one for one in (here, *here.parents) if all((one / name).exists() for name in MARKS)), None)


def enter_root() -> None:
    """Work in the root of the clone that the current folder is in."""
    root = clone_root()
    if root and root != Path.cwd():
        os.environ[CALLED_FROM] = str(Path.cwd())
        os.chdir(root)


def given(path: str) -> Path:
    """A path that a person gave: relative to the folder where the command was called."""
    called_from = os.environ.get(CALLED_FROM)
    return Path(os.path.relpath(Path(called_from) / path)) if called_from else Path(path)


def open_streams() -> None:
    """Replace streams that were closed before the start (``2>&-``, cron, daemons) by ones that go nowhere.

    Else a file that is opened later takes the stream's number, and messages are written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        setattr(sys, name, Path(os.devnull).open("w" if number else "r"))  # noqa: SIM115 - open until the end
