"""Read a source's files, each hashed while it is read; and what a source lists before images are opened.

reader = Reader(Path("data/coco"))
content, sha256 = reader.read("annotations/instances_train2017.json")
reader.digest()     # {"sha256": ..., "files": 1, "bytes": ...} over all that was read
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mls.data.store import SPLITS
from mls.errors import MlsError


@dataclass(frozen=True, slots=True)
class Entry:
    """One image that a source lists."""

    name: str
    """Path relative to the source's root, with forward slashes."""
    split: str
    classes: list[int]
    """Sorted class indices."""
    annotations: list[dict[str, Any]]
    """As in `mls.data.writer.Record`."""
    size: tuple[int, int] | None = None
    """Width and height that the source claims, pixels; its annotations are in these coordinates."""
    mask: str | None = None
    """Path of the file that labels each pixel, relative to the root: an 8-bit grey PNG; see `Listing.values`."""


@dataclass(frozen=True)
class Listing:
    """All that a source lists, from its small files alone."""

    classes: list[str]
    multi_label: bool
    entries: list[Entry]
    """In final order; see `in_order`."""
    values: Mapping[int, int] | None = None
    """Class index, or `mls.data.store.IGNORE`, of each value that a label file may hold. An image that has such a
    file has the classes that are to be seen in it."""


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Sort by split (train, val, test, unlabeled), then by name."""
    return sorted(entries, key=lambda entry: (SPLITS.index(entry.split), entry.name))


def hold_out(count: int, share: float, seed: int) -> set[int]:
    """Choose which of ``count`` train images become val: a seeded draw of ``share`` of them.

    At least one becomes val and, from two images on, at least one stays.
    """
    wanted = min(max(1, round(share * count)), max(1, count - 1))
    return set(np.random.default_rng(seed).permutation(count)[:wanted].tolist())


def unsafe(name: str) -> str | None:
    """Why a listed path can't be used, or None: it must stay below the source's root as written.

    Links below the root are followed: they are how a person puts a large folder elsewhere.
    """
    if not name or not name.isprintable():
        return "is empty or holds unprintable characters"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "leaves the data set's folder, or is not in its plainest form (relative, without . and ..)"
    return None


class Reader:
    """The files below one root. Reading from several threads is safe."""

    def __init__(self, root: Path) -> None:
        """Take the source's root; nothing is read yet."""
        self.root = root
        self._seen: dict[str, tuple[int, str]] = {}
        """Size and sha256 by name."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.root / name).is_file()

    def read(self, name: str) -> tuple[bytes, str]:
        """Return a file's content and its sha256 (hex), and count it into the digest.

        Raises:
            MlsError: the file is missing or can't be read.
        """
        try:
            content = (self.root / name).read_bytes()
        except OSError as error:
            raise self._unreadable(name, error) from error
        sha256 = hashlib.sha256(content).hexdigest()
        self._seen[name] = (len(content), sha256)
        return content, sha256

    def hash(self, name: str) -> None:
        """Count a file into the digest without keeping its content."""
        try:
            with (self.root / name).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self._seen[name] = (file.tell(), sha256)
        except OSError as error:
            raise self._unreadable(name, error) from error

    def seen(self) -> dict[str, str]:
        """The sha256 of all that was read, by name."""
        return {name: sha256 for name, (_, sha256) in self._seen.items()}

    def digest(self) -> dict[str, Any]:
        """Return ``sha256``, ``files`` and ``bytes`` of all that was read.

        The sha256 is over the sorted lines ``relative path NUL size NUL sha256 of content``.
        """
        total = hashlib.sha256()
        for name in sorted(self._seen):
            size, sha256 = self._seen[name]
            total.update(f"{name}\0{size}\0{sha256}\n".encode())
        return {
            "sha256": total.hexdigest(),
            "files": len(self._seen),
            "bytes": sum(size for size, _ in self._seen.values()),
        }

    def _unreadable(self, name: str, error: OSError) -> MlsError:
        return MlsError(f"{self.root / name} can't be read ({error.strerror}); is the data set complete?")
