"""Read the files of a source, hashing each one.

reader = Reader(Path("data/coco"))
content, sha256 = reader.read("annotations/instances_train2017.json")
reader.digest()     # {"sha256": ..., "files": 1, "bytes": ...} over all files read so far
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mls.runtime.errors import MlsError


def unsafe(name: str) -> str | None:
    """Say why a listed path can't be used, or return None: it must stay below the source's root as written.

    Links below the root are followed: they are how a person puts a large folder elsewhere.
    """
    if not name or not name.isprintable():
        return "is empty or holds unprintable characters"
    if {"", ".", ".."} & set(name.split("/")):
        return "leaves the data set's folder, or is not in its plainest form (relative, without . and ..)"
    return None


class Reader:
    """The files below one root. Reading from several threads is safe."""

    def __init__(self, root: Path, poll: Callable[[], None] = lambda: None) -> None:
        """Take the source's root; nothing is read yet.

        Args:
            root: a folder.
            poll: what reads for more than a second calls it now and then; an exception that it raises ends the reading.
        """
        self.root, self.poll = root, poll
        self._seen: dict[str, tuple[int, str]] = {}
        """Size and sha256 by name."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            return (self.root / name).is_file()
        except OSError:  # a name that is too long for the file system, a folder that may not be read
            return False

    def read(self, name: str) -> tuple[bytes, str]:
        """Return a file's content and its sha256 (hex), and count it into the digest.

        Raises:
            MlsError: the file is missing or can't be read.
        """
        try:
            content = (self.root / name).read_bytes()
        except OSError as error:
            raise MlsError(f"{self.root / name} can't be read ({error.strerror}); is the data set complete?") from error
        sha256 = hashlib.sha256(content).hexdigest()
        self._seen[name] = (len(content), sha256)
        return content, sha256

    def seen(self) -> dict[str, str]:
        """The sha256 of each file read so far, by name."""
        return {name: sha256 for name, (_, sha256) in self._seen.items()}

    def digest(self) -> dict[str, Any]:
        """Return ``sha256``, ``files`` and ``bytes`` of all files read so far.

        The sha256 is over the sorted lines ``relative path NUL size NUL sha256 of content``.
        """
        lines = (f"{name}\0{size}\0{sha256}\n" for name, (size, sha256) in sorted(self._seen.items()))
        return {
            "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
            "files": len(self._seen),
            "bytes": sum(size for size, _ in self._seen.values()),
        }
