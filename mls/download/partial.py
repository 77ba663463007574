"""A file that is coming in: ``NAME.part``, and ``NAME.part.json`` that says which of its bytes are on the disk.

    partial = Partial(Path("images.zip"))
    partial.begin(total=815_585_330, url=url, validator='"5f2a"', checked=True)    # goes on, or starts over
    for start, end in partial.missing(): ...
    partial.write(start, content, stop)
    partial.flush()                     # both files are durable; a kill at any point loses what came since

The journal lists a range only after its bytes were synced, so it never claims more than the disk holds.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

from mls.download.web import Stopped
from mls.runtime.errors import MlsError
from mls.runtime.files import sync, write_atomic

MB = 1_000_000

Range = tuple[int, int]
"""First byte, and the one after the last."""


class Partial:
    """The bytes that came, of one target. Writing from several threads is safe."""

    def __init__(self, target: Path) -> None:
        """Open what an earlier call has left, or nothing; the caller holds the target's lock."""
        self.path = target.with_name(f"{target.name}.part")
        self.journal = target.with_name(f"{target.name}.part.json")
        self.total: int | None = None
        self._from: tuple[str, str | None] = ("", None)
        self._done: list[Range] = []
        self._lock = threading.Lock()
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        self._load()

    def _load(self) -> None:
        """Take the journal where it is whole and fits the file."""
        try:
            raw = json.loads(self.journal.read_text(encoding="utf-8"))
            total, url, validator = raw["total"], raw["url"], raw["validator"]
            done = [(int(start), int(end)) for start, end in raw["done"]]
        except (OSError, ValueError, KeyError, TypeError):
            return
        held = os.fstat(self._handle).st_size
        edges = [edge for one in done for edge in one]
        in_order = edges == sorted(set(edges))
        if not isinstance(total, int) or not in_order or (edges and not 0 <= edges[0] < edges[-1] <= min(held, total)):
            return
        self.total, self._from, self._done = total, (url, validator), done

    def begin(self, total: int, url: str, validator: str | None, *, checked: bool) -> None:
        """Go on with a file of ``total`` bytes if what is there is a part of it, else start over.

        Args:
            total: its length, bytes.
            url: where it comes from.
            validator: ETag or Last-Modified; another one is another file.
            checked: its checksum is known, and tells in the end: then any address of equal length will do.
        """
        same = checked or (validator is not None and self._from == (url, validator))
        if self.total != total or not same:
            self.restart(total)
        self._from = (url, validator)

    def restart(self, total: int | None, stop: threading.Event | None = None) -> None:
        """Forget all bytes, unless ``stop`` was set (then `Stopped` is raised).

        The journal goes first: it must never speak of bytes that are gone.
        """
        with self._lock:
            if stop is not None and stop.is_set():
                raise Stopped
            self.journal.unlink(missing_ok=True)
            sync(self.journal.parent)
            os.ftruncate(self._handle, 0)
            self.total, self._done, self._from = total, [], ("", None)

    def write(self, offset: int, content: bytes, stop: threading.Event) -> None:
        """Keep bytes, unless ``stop`` was set: after that, and a `flush` or `restart`, nothing changes any more.

        Raises:
            Stopped: it was.
            OSError: among others, the disk is full.
        """
        with self._lock:
            if stop.is_set():
                raise Stopped
            start, end = offset, offset + len(content)
            view = memoryview(content)
            while view:
                view = view[os.pwrite(self._handle, view, end - len(view)) :]
            apart = [one for one in self._done if one[1] < start or one[0] > end]
            touching = [one for one in self._done if one not in apart] + [(start, end)]
            self._done = sorted([*apart, (min(a for a, _ in touching), max(b for _, b in touching))])

    def missing(self, start: int = 0, end: int | None = None) -> list[Range]:
        """Ranges within [start, end) that have not come."""
        end = (self.total or 0) if end is None else end
        gaps = []
        with self._lock:
            for a, b in self._done:
                if start < min(a, end):
                    gaps.append((start, min(a, end)))
                start = max(start, b)
        return [*gaps, (start, end)] if start < end else gaps

    @property
    def held(self) -> int:
        """Bytes that have come."""
        with self._lock:
            return sum(b - a for a, b in self._done)

    def flush(self) -> None:
        """Make what came durable, then say so in the journal."""
        with self._lock:
            url, validator = self._from
            state = {"total": self.total, "url": url, "validator": validator, "done": self._done}
        os.fsync(self._handle)
        if state["total"] is not None:
            write_atomic(self.journal, json.dumps(state) + "\n")

    def close(self) -> None:
        """Let go of the file; both stay on the disk. Threads that still write must have been told to stop."""
        with self._lock:
            os.close(self._handle)

    def drop(self) -> None:
        """Remove journal and file, in this order; and journals that a kill has left half-written."""
        for leftover in self.journal.parent.glob(f".{self.journal.name}.*.tmp"):
            leftover.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def require_space(folder: Path, needed: int, name: str) -> None:
    """Stop before a disk is filled.

    Raises:
        MlsError: the disk of ``folder`` has less than ``needed`` bytes free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MlsError(
            f"{name} needs {needed / 1e9:.2f} GB, and the disk that holds {folder} has {free / 1e9:.2f} GB free. "
            "Free some space, or let MLS_DATA name a folder on another disk"
        )
