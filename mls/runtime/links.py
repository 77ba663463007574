"""Copy folders so that both copies share their files' bytes on disk, where the file system can.

A file is shared by a reflink or a hard link, never by a symbolic link: DVC records a symbolic link inside an output as
an empty file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from mls.runtime.files import sync

FICLONE = 0x40049409
"""Linux's request for a reflink, see ioctl_ficlone(2)."""
WRITABLE = 0o222


def link_folder(source: Path, target: Path, staging: Path, shared: Iterable[str], copied: Collection[str]) -> None:
    """Replace ``target`` by a copy of ``source`` that appears whole or not at all, also after a power cut.

    Args:
        source: folder with the files.
        target: the copy; what is there now is removed.
        staging: where the copy is built, on the disk of ``target``; the caller's lock keeps others from it.
        shared: names of the files to link; they become read-only, since a hard link is writable by both its names.
        copied: names of the files to copy.
    """
    shutil.rmtree(staging, ignore_errors=True)
    for name in (*shared, *copied):
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        if name in copied:
            shutil.copyfile(source / name, staging / name)
        else:
            _share_read_only(source / name, staging / name)
    for path in (*staging.rglob("*"), staging):
        sync(path)
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging.rename(target)
    sync(target.parent)


def _share_read_only(source: Path, target: Path) -> None:
    share(source, target)
    mode = target.stat().st_mode
    if mode & WRITABLE:  # a file that is read-only already may be another user's, whose mode we can't change
        try:
            target.chmod(mode & ~WRITABLE)
        except PermissionError:  # another user's file that we may write: use a copy, which is ours
            target.unlink()
            shutil.copyfile(source, target)
            target.chmod(mode & ~WRITABLE)


def share(source: Path, target: Path) -> None:
    """Make ``target`` a reflink, else a hard link, else a copy of a file; only an error of the copy is raised."""
    source = source.resolve(strict=True)  # DVC may have linked the file from its cache by a symbolic link
    for link in (_reflink, os.link):
        with suppress(OSError):
            link(source, target)
            return
        target.unlink(missing_ok=True)
    shutil.copyfile(source, target)


def _reflink(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as write:
        fcntl.ioctl(write, FICLONE, read.fileno())
