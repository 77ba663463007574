"""Unpack zip, tar and tar.gz archives of strangers: all of it checked first, written aside, then moved in.

    unpack(Path("VOCtrainval_06-Nov-2007.tar"), into=Path("voc"))

Only files and folders with plain relative names come out: no links, devices or FIFOs, nothing absolute, no ``..``,
no backslash or drive, nothing twice, nothing in ``.mls`` (where our own notes lie), no more than is announced and
than ``limit``. Owners, modes and times are not taken over. ``INTO/.mls/unpack-NAME`` exists from the first byte to
the last move: where it is there, the unpacking is not complete, and the next call does it again.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from mls.download.partial import MB, require_space
from mls.runtime.errors import MlsError
from mls.runtime.progress import Bar

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
NOTES = ".mls"
"""Folder of our own below a data set's root; no archive may write there."""
LIMIT = 64 << 30
"""Bytes that one archive may hold."""
MEMBERS = 1_000_000
"""Files and folders that one archive may hold."""
BLOCK = 4096
"""What a small file takes on a disk, bytes."""
CHUNK = 1 << 20

_DAMAGE = (zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, IndexError, NotImplementedError)
"""What ``zipfile`` and ``tarfile`` raise on damage, besides their own."""


@dataclass(frozen=True)
class _Member:
    """A file or folder of an archive."""

    name: str
    """As in the archive, without ``./`` before and ``/`` behind."""
    size: int
    """As announced, bytes."""
    folder: bool
    open: Callable[[], IO[bytes]]


class _Info(tarfile.TarInfo):
    """A header that is torn or damaged is an error; ``tarfile`` takes it for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Info:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # two empty blocks: the true end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}; the end is missing") from error


def is_archive(name: str) -> bool:
    """Whether `unpack` knows a file of this name."""
    return name.lower().endswith(SUFFIXES)


def aside(archive: Path, into: Path) -> Path:
    """The folder that exists while ``archive`` is being unpacked in ``into``."""
    return into / NOTES / f"unpack-{archive.name}"


def unpack(
    archive: Path,
    into: Path,
    limit: int = LIMIT,
    poll: Callable[[], None] = lambda: None,
    before: Callable[[dict[str, str]], None] = lambda sha256: None,
) -> None:
    """Unpack ``archive`` in ``into``; folders that exist are added to, files that exist are replaced.

    Args:
        archive: zip, tar or tar.gz.
        into: made where it is missing.
        limit: bytes that may come out.
        poll: called often; what it raises stops, and nothing is moved in.
        before: called with the sha256 of each file (by name, as in the archive) when all is unpacked and nothing is
            moved in yet; what it raises stops likewise.

    Raises:
        MlsError: the archive is damaged, too large or not to be trusted (names the member), or the disk is too full.
    """
    temporary = aside(archive, into)
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
    with _explain(archive):
        files, size = _check(archive, limit, poll)
    into.mkdir(parents=True, exist_ok=True)
    require_space(into, size + files * BLOCK, f"what {archive.name} holds")
    temporary.mkdir(parents=True)
    try:
        with _explain(archive), Bar(f"unpack {archive.name}", -(-size // MB), "MB") as bar:
            sha256 = _extract(archive, temporary, bar, poll)
        before(sha256)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _tidy(into)
        raise
    for path in sorted(temporary.iterdir()):
        _move(path, into / path.name, archive)
    os.sync()  # one for all: a power cut must not leave empty files behind a note that says all is there
    temporary.rmdir()
    _tidy(into)


def _tidy(into: Path) -> None:
    with suppress(OSError):  # other notes lie there
        (into / NOTES).rmdir()


def _check(archive: Path, limit: int, poll: Callable[[], None]) -> tuple[int, int]:
    """Look at all that the archive announces; return how many members, and how many bytes.

    Raises:
        MlsError: names the first member that is not to be trusted.
    """
    files: set[str] = set()
    folders: set[str] = set()
    total = count = 0
    with _members(archive) as members:
        for member in members:
            poll()
            if problem := _unsafe(member.name):
                raise MlsError(f"{archive.name}: {member.name!r} {problem}; nothing was unpacked")
            above = member.name.split("/")[:-1]
            parents = {"/".join(above[: depth + 1]) for depth in range(len(above))}
            if member.name in files or parents & files or (not member.folder and member.name in folders):
                raise MlsError(f"{archive.name}: {member.name!r} is there twice; nothing was unpacked")
            folders |= parents
            (folders if member.folder else files).add(member.name)
            total, count = total + member.size, count + 1
            if total > limit or count > MEMBERS:
                raise MlsError(
                    f"{archive.name} holds more than {limit / 1e9:g} GB or {MEMBERS:,} members; nothing was unpacked. "
                    "Is it the right file?"
                )
    return count, total


def _extract(archive: Path, folder: Path, bar: Bar, poll: Callable[[], None]) -> dict[str, str]:
    """Write all members below an empty folder; return the sha256 of each file."""
    written = 0
    sha256: dict[str, str] = {}
    with _members(archive) as members:
        for member in members:
            poll()
            path = folder / member.name
            if member.folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            left = member.size
            digest = hashlib.sha256()
            with member.open() as source, path.open("xb") as file:
                while content := source.read(CHUNK):
                    poll()
                    left -= len(content)
                    if left < 0:
                        break
                    file.write(content)
                    digest.update(content)
                    written += len(content)
                    if steps := min(written // MB, bar.total) - bar.done:
                        bar.advance(steps, steps)
            if left:
                raise MlsError(f"{archive.name}: {member.name!r} has not the {member.size:,} bytes that it announces")
            sha256[member.name] = digest.hexdigest()
    if bar.done < bar.total:
        bar.advance(bar.total - bar.done, bar.total - bar.done)
    return sha256


def _move(source: Path, target: Path, archive: Path) -> None:
    """Move a file or folder; a folder that exists is gone into (also where it is a link of the owner's)."""
    if source.is_dir() and target.is_dir():
        for path in sorted(source.iterdir()):
            _move(path, target / path.name, archive)
        source.rmdir()
    elif source.is_dir() != target.is_dir() and (target.exists() or target.is_symlink()):
        raise MlsError(
            f"{target} is in the way of what {archive.name} holds ({'a folder' if source.is_dir() else 'a file'}); "
            "move it elsewhere and run the same command again"
        )
    else:
        shutil.move(source, target)  # a rename, or a copy where a link leads to another disk


def _unsafe(name: str) -> str | None:
    """Why a member's name can't be used, or None."""
    parts = name.split("/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is an absolute path"
    if any(part in ("", ".", "..") for part in parts):
        return "leaves the folder that it is unpacked in, or is not in its plainest form"
    if "\\" in name or "\0" in name or any(len(part.encode(errors="surrogateescape")) > 255 for part in parts):
        return "is not a name that every system reads alike"
    if parts[0] == NOTES:
        return "is where the notes on what was unpacked lie"
    return None


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    """Open an archive and go through its members; what is no file or folder is refused."""
    if not is_archive(archive.name):
        raise MlsError(f"{archive.name} is not one of {', '.join(SUFFIXES)}")
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            yield _zip_members(archive, opened)
    else:
        with tarfile.open(archive, "r:*", tarinfo=_Info) as tar:
            yield _tar_members(archive, tar)


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _not_plain(archive, info.filename)
        if info.flag_bits & 1:
            raise MlsError(f"{archive.name}: {info.filename!r} is encrypted; nothing was unpacked")
        name = info.orig_filename  # not yet cut at a NUL
        if plain := name.removeprefix("./").removesuffix("/"):
            folder = name.endswith("/")
            yield _Member(plain, 0 if folder else info.file_size, folder, partial(opened.open, info))


def _tar_members(archive: Path, tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        if not (info.isreg() or info.isdir()) or info.issparse():
            raise _not_plain(archive, info.name)
        name = info.name.removeprefix("./").removesuffix("/")
        if name not in ("", "."):
            size = info.size if info.isreg() else 0
            yield _Member(name, size, info.isdir(), partial(_content, tar, info))
    while tar.fileobj is not None and tar.fileobj.read(CHUNK):  # gzip's checksum is at the very end
        pass


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    source = tar.extractfile(info)
    if source is None:
        raise tarfile.ReadError(f"{info.name!r} has no content")
    return source


def _not_plain(archive: Path, name: str) -> MlsError:
    return MlsError(
        f"{archive.name}: {name!r} is a link, a device or a sparse file; nothing was unpacked. If you trust it, unpack "
        "it yourself, and name the folder by `root:` in the dataset's entry"
    )


@contextmanager
def _explain(archive: Path) -> Iterator[None]:
    """Say of a damaged archive what to do."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, OSError, *_DAMAGE) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not gzip's or bzip2's
            raise
        raise MlsError(f"{archive} is damaged or torn ({error}); remove it, and run the same command again") from error
