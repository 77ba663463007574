"""Unpack untrusted archives: every member is checked first, then all are written to a staging folder and moved in.

    unpack(Path("VOCtrainval_06-Nov-2007.tar"), into=Path("voc"))

zip, tar and tar.gz are unpacked; any other file is copied. Only files and folders with plain relative names come out:
no links, devices or FIFOs, nothing absolute, no ``..``, no backslash or drive, no name twice, nothing in ``.mls``
(where our own notes lie), no more bytes than announced and at most `LIMIT`. Owners, modes and times are not taken
over. ``INTO/.mls/unpack-NAME`` exists from the first byte to the last move: while it is there, the unpacking is not
complete, and the next call does it again.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from mls.download.partial import MB, advance_to, require_space
from mls.download.web import Poll
from mls.runtime.errors import MlsError
from mls.runtime.files import sha256
from mls.runtime.progress import Bar

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
NOTES = ".mls"
"""Folder for our own notes below a data set's root; no archive may write there."""
LIMIT = 64 << 30
"""Maximum size of what one archive holds, in bytes."""
MEMBERS = 1_000_000
"""Maximum number of files and folders in one archive."""
BLOCK = 4096
"""Disk space that even a small file takes, in bytes."""


@dataclass(frozen=True)
class _Member:
    """A file or folder of an archive."""

    name: str
    size: int
    """As announced, in bytes; neither ``zipfile`` nor ``tarfile`` gives more."""
    plain: bool
    """It is a file or a folder, and not a link or a device."""
    open: Callable[[], IO[bytes] | None]
    """Gives a file's content; None for a folder."""


class _Info(tarfile.TarInfo):
    """A header whose damage is an error: ``tarfile`` takes a damaged one for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Info:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # an empty block: the true end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}; the end is missing") from error


def is_archive(name: str) -> bool:
    """Whether `unpack` unpacks a file of this name."""
    return name.lower().endswith(SUFFIXES)


def staging_folder(archive: Path, into: Path) -> Path:
    """The folder that exists while ``archive`` is being unpacked into ``into``."""
    return into / NOTES / f"unpack-{archive.name}"


def unpack(
    archive: Path,
    into: Path,
    poll: Poll = lambda: None,
    before: Callable[[dict[str, str]], None] = lambda digests: None,
) -> None:
    """Unpack ``archive`` into ``into``; existing folders are added to, existing files are replaced.

    Args:
        archive: zip, tar or tar.gz; any other file is copied.
        into: made if it is missing.
        poll: called for each member; if it raises, nothing is moved in.
        before: called with the sha256 of each file (by its name in the archive) when all is unpacked and nothing is
            moved in yet; if it raises, nothing is.

    Raises:
        MlsError: the archive is damaged, too large or not safe (names the member), or the disk has too little space.
    """
    staging = staging_folder(archive, into)
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed run
    with _explain_damage(archive):
        count, size = _check(archive, poll)
    into.mkdir(parents=True, exist_ok=True)
    require_space(into, size + count * BLOCK, f"what {archive.name} holds")
    try:
        staging.mkdir(parents=True)
        with _explain_damage(archive), Bar(f"unpack {archive.name}", -(-size // MB), "MB") as bar:
            digests = _extract(archive, staging, bar, poll)
        before(digests)
        for path in sorted(staging.iterdir()):
            _move(path, into / path.name, archive)
        os.sync()  # one for all files: a power cut must not leave empty ones behind a note that says all is there
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # other notes may lie there
            (into / NOTES).rmdir()


def _check(archive: Path, poll: Poll) -> tuple[int, int]:
    """Check all that the archive announces; return the number of its members, and of their bytes."""
    count = total = 0
    for member in _members(archive):
        poll()
        problem = _unsafe(member.name) if member.plain else "is a link, a device or a sparse file"
        if problem:
            raise MlsError(
                f"{archive.name}: {member.name!r} {problem}; nothing was unpacked. If you trust the archive, unpack it "
                "yourself, and set `root:` in the dataset's entry to that folder"
            )
        count, total = count + 1, total + member.size
        if total > LIMIT or count > MEMBERS:
            raise MlsError(
                f"{archive.name} holds more than {LIMIT / 1e9:g} GB or {MEMBERS:,} members; nothing was unpacked. "
                "Is it the right file?"
            )
    return count, total


def _extract(archive: Path, staging: Path, bar: Bar, poll: Poll) -> dict[str, str]:
    """Write all members below an empty folder; return the sha256 of each file."""
    written = 0
    digests: dict[str, str] = {}
    for member in _members(archive):
        poll()
        path = staging / member.name
        try:
            source = member.open()
            if source is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("xb") as file:
                shutil.copyfileobj(source, file)
        except (FileExistsError, NotADirectoryError) as error:
            raise MlsError(f"{archive.name}: {member.name!r} is there twice; nothing was unpacked") from error
        if path.stat().st_size != member.size:
            raise MlsError(f"{archive.name}: {member.name!r} is shorter than the {member.size:,} bytes it announces")
        digests[path.relative_to(staging).as_posix()] = sha256(path)
        written += member.size
        advance_to(bar, written // MB)
    advance_to(bar, bar.total)
    return digests


def _move(source: Path, target: Path, archive: Path) -> None:
    """Move a file or folder; an existing folder is merged with (also through a link that the owner has put there)."""
    if source.is_dir() and target.is_dir():
        for path in sorted(source.iterdir()):
            _move(path, target / path.name, archive)
        source.rmdir()
    elif source.is_dir() != target.is_dir() and (target.exists() or target.is_symlink()):
        raise MlsError(
            f"{target} is in the way of {'a folder' if source.is_dir() else 'a file'} of {archive.name}; move it "
            "elsewhere and run the same command again"
        )
    else:
        shutil.move(source, target)  # a rename, or a copy if a link leads to another disk


def _unsafe(name: str) -> str | None:
    """Say why a member's name can't be used, or return None."""
    if name in (".", "./"):
        return None  # the folder itself that is unpacked into
    parts = name.removeprefix("./").removesuffix("/").split("/")
    if {"", ".", ".."} & set(parts) or re.match(r"[A-Za-z]:", parts[0]):
        return "leaves the folder that it is unpacked in, or is not a plain relative path"
    if "\\" in name or any(len(os.fsencode(part)) > 255 for part in parts):
        return "is not a name that every system reads alike"
    return "is in the folder of our own notes" if parts[0] == NOTES else None


def _members(archive: Path) -> Iterator[_Member]:
    """Yield the members of an archive; each can be opened until the next one is requested."""
    if not is_archive(archive.name):
        yield _Member(archive.name, archive.stat().st_size, True, lambda: archive.open("rb"))
    elif archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                plain = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
                content = (lambda: None) if entry.is_dir() else partial(opened.open, entry)
                yield _Member(entry.filename, entry.file_size, plain, content)
    else:
        with tarfile.open(archive, "r:*", tarinfo=_Info) as tar:
            for info in tar:
                plain = (
                    info.isreg() or info.isdir()
                ) and not info.issparse()  # those unpack to far more than they hold
                yield _Member(info.name, info.size, plain, partial(tar.extractfile, info))
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):  # gzip's checksum is at the very end
                pass


@contextmanager
def _explain_damage(archive: Path) -> Iterator[None]:
    """Say what to do about a damaged archive, on which ``zipfile`` and ``tarfile`` raise errors of many kinds."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MlsError) or (isinstance(error, OSError) and error.errno is not None):
            raise  # our own, or the system's (gzip's and bzip2's have no number)
        raise MlsError(
            f"{archive} can't be unpacked ({error}). If it is damaged or torn, remove it and run the same command again"
        ) from error
