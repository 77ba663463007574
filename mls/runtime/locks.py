"""Kernel locks decide which process makes an artifact, publishes or downloads.

They work between clones and users of one machine, and on NFS between machines. The kernel frees a lock when its
holder dies, so no lock is ever stale.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mls.runtime.signals import leaving_at_once


def say(message: str) -> None:
    """Print a line to stderr; stdout is for results."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Hold a lock; wait while another process holds it.

    Args:
        path: the lock file, which is created if needed.
        name: what the lock protects, for the message to a person who waits.

    Raises:
        Interrupted: a signal came while it waited.
    """
    with _opened(path) as handle:
        if not _try_lock(handle, fcntl.LOCK_EX):
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
            with leaving_at_once(f"waiting for {name}"):
                say(f"{name}: process {owner or '?'} is making it; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold a lock without waiting; yield False, and hold nothing, if another process has it."""
    with _opened(path) as handle:
        yield _try_lock(handle, fcntl.LOCK_EX)


def is_locked(path: Path) -> bool:
    """Whether a live process holds a lock."""
    # Read-only and shared: the file may belong to another user, and NFS needs write access for an exclusive lock.
    try:
        with path.open("rb") as file:
            return not _try_lock(file.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
