"""Kernel locks: who makes an artifact, publishes, downloads. They hold between clones, and end with any death."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def say(message: str) -> None:
    """A line on stderr; stdout is for results."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Hold a kernel lock; wait for a live owner. The kernel frees it on any death."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
            say(f"{name}: process {owner or '?'} is making it; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold a kernel lock; False, and no lock, where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a live process holds a lock."""
    try:
        handle = os.open(path, os.O_RDONLY)  # it may be another user's
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # NFS has no other lock of a file opened to be read
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
