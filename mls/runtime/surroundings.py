"""Where and how a command was started: its folder and its streams.

All folders of a run (`artifacts/`, `.store/`, `work/`) are in the clone's root, so a command that starts in a folder
below works in the root. Elsewhere a person names the root: ``MLS_ROOT=. mls data scenes -e my.yaml``. Paths in a
command's arguments still are below the folder where it was called.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mls.runtime.errors import MlsError
from mls.runtime.paths import expanded

MARKS = ("params.yaml", "data.lock", "mls")
"""What the root of a clone holds."""
ROOT = "MLS_ROOT"
"""Names the folder to work in, be it a clone or not."""
CALLED_FROM = "MLS_CALLED_FROM"
"""Names the folder where a command was called, if that is another than the root."""


def clone_root() -> Path | None:
    """The clone that the current folder is in, or None."""
    here = Path.cwd()
    return next((one for one in (here, *here.parents) if all((one / name).exists() for name in MARKS)), None)


def enter_root() -> None:
    """Work in the folder that `ROOT` names, else in the root of the clone that the current folder is in.

    Raises:
        MlsError: `ROOT` names no folder.
    """
    named = os.environ.get(ROOT)
    root = expanded(named, ROOT).absolute() if named else clone_root()
    if root and not root.is_dir():
        raise MlsError(f"{ROOT} is {named!r}: there is no such folder")
    if root and not root.samefile(Path.cwd()):
        os.environ[CALLED_FROM] = str(Path.cwd())
        os.chdir(root)
    if named:
        os.environ[ROOT] = "."  # for the processes that this one starts there


def require_root() -> None:
    """Refuse to work where no folder of a run belongs.

    Raises:
        MlsError: the current folder is not in a clone, and nobody said that it is the one to use.
    """
    if not os.environ.get(ROOT) and clone_root() is None:
        raise MlsError(
            f"{Path.cwd()} is not in a clone of this repository, where artifacts/, .store/ and work/ belong: change to "
            f"one, or set {ROOT} to the folder that should hold them ({ROOT}=. for this one)"
        )


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
