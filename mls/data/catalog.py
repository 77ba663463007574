"""Where the sources come from: archives, mirrors, sizes, checksums, licences and counts.

    needed(VocDataset(source="voc"))            # the archives that this entry reads
    published_digest(VocDataset(source="voc"))  # what identifies them, if each has a published checksum
    expected(VocDataset(source="voc"))          # {"train": 5011, "test": 4952}, val counted as train

Nothing here opens a file or a connection: ids are computed from this module and ``data.lock``.
A checksum stands here only if somebody publishes it; its source is in the comment beside it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mls.experiment.datasets import LocalDataset


@dataclass(frozen=True)
class Archive:
    """One file to fetch, and what it becomes below the source's root."""

    file: str
    """Its name, unique within a source."""
    urls: tuple[str, ...]
    """Mirrors, tried in order. None: no address is public, a person must bring it."""
    size: int | None
    """Bytes, where known."""
    checksum: str | None
    """``md5:<hex>`` or ``sha256:<hex>`` as published, or None."""
    gives: tuple[str, ...]
    """Paths relative to the root (files or folders) that exist once it is unpacked: where all are there, it is not
    needed."""
    into: str = ""
    """Folder below the root that it is unpacked in; a file that is no archive is put there."""


@dataclass(frozen=True)
class Source:
    """A public data set."""

    title: str
    page: str
    """Where people read about it."""
    licence: str
    """In a few words; who wants to be sure reads the page."""
    hint: str
    """What to do where its host does not answer, for the error."""
    archives: tuple[Archive, ...]


def needed(config: LocalDataset) -> tuple[Archive, ...]:
    """The archives that a dataset entry reads (none for ``folder``)."""
    return ()


def expected(config: LocalDataset) -> dict[str, int] | None:
    """Official counts of the splits that an entry reads, val counted as train where it is held out of train; None
    where they are not known (``folder``, subsets, other VOC sets)."""
    return None


def published_digest(config: LocalDataset) -> str | None:
    """What identifies an entry by its archives' checksums, or None where not all that it reads has one."""
    archives = needed(config)
    whole = not getattr(config, "subset", None)  # single images have no published checksums
    if not archives or not whole or any(archive.checksum is None for archive in archives):
        return None
    lines = sorted(f"{archive.file} {archive.checksum}\n" for archive in archives)
    return "archives:" + hashlib.sha256("".join(lines).encode()).hexdigest()
