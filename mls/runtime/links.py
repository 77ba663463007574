"""Folders that share their files' bytes with another folder, where the disk can.

Never by symbolic links: DVC records one inside an output as an empty file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mls.runtime.files import sync

FICLONE = 0x40049409
"""Linux's request for a reflink, ioctl_ficlone(2)."""
WRITABLE = 0o222


def link_folder(source: Path, target: Path, aside: Path, shared: Iterable[str], copied: Iterable[str]) -> None:
    """Make ``target`` hold files of ``source``: it appears whole, or not at all.

    Args:
        source: where the files are.
        target: what is there is removed.
        aside: where it is built, on the disk of ``target``; the caller's lock says that nobody else builds there.
        shared: names of files that become links, read-only ones: a hard link can be written by either of its names.
        copied: names of files that become copies.
    """
    shutil.rmtree(aside, ignore_errors=True)
    for name in (*shared, *copied):
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
    for name in shared:
        share(source / name, aside / name)
        mode = (aside / name).stat().st_mode
        if mode & WRITABLE:  # a read-only one may be another user's, whose mode is not ours to change
            try:
                (aside / name).chmod(mode & ~WRITABLE)
            except PermissionError:  # one that he lets us write: a copy is ours
                (aside / name).unlink()
                shutil.copyfile(source / name, aside / name)
                (aside / name).chmod(mode & ~WRITABLE)
        sync(aside / name)
    for name in copied:
        shutil.copyfile(source / name, aside / name)
        sync(aside / name)
    for folder in (*(path for path in aside.rglob("*") if path.is_dir()), aside):
        sync(folder)
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside.rename(target)
    sync(target.parent)


def share(source: Path, target: Path) -> None:
    """Make a file by reflink, else hard link, else copy; only the last one's errors are errors."""
    source = source.resolve(strict=True)  # DVC's cache may be linked by symbolic links
    for way in (_reflink, os.link):
        with suppress(OSError):
            way(source, target)
            return
        target.unlink(missing_ok=True)
    shutil.copyfile(source, target)


def _reflink(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as write:
        fcntl.ioctl(write, FICLONE, read.fileno())
