"""A partly downloaded file: ``NAME.part``, and its journal ``NAME.part.json`` (address, length, validator).

    partial = Partial(Path("images.zip"), checked=True)     # picks up what an earlier call has left
    partial.restart(815_585_330, url, validator='"5f2a"')   # or forgets it
    with partial.path.open("r+b", buffering=0) as file: partial.append(file, content)
    partial.finish()                                        # images.zip appears

The journal is written and synced before the first byte, and bytes are only appended, so after a kill at any point
``NAME.part`` is a beginning of the file in the journal.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from io import FileIO
from pathlib import Path

from mls.runtime.errors import MlsError
from mls.runtime.files import sync, write_atomic
from mls.runtime.progress import Bar

MB = 1_000_000


class Partial:
    """The bytes of one target that have arrived so far."""

    def __init__(self, target: Path, size: int | None = None, *, checked: bool = False, small: bool = False) -> None:
        """Pick up what an earlier call has left; the caller holds the target's lock.

        Args:
            target: where the file will appear.
            size: its length in bytes, where known.
            checked: its checksum is known. Then any address may continue it: the checksum finds wrong bytes.
            small: it is fetched again rather than resumed by a later call: no journal, no progress bar.
        """
        self.target, self.size, self.checked, self.small = target, size, checked, small
        self.path = target.with_name(f"{target.name}.part")
        self.journal = target.with_name(f"{target.name}.part.json")
        self.held = 0
        self.total: int | None = None
        self.url, self.validator = "", None
        with suppress(OSError, ValueError, KeyError, TypeError):  # nothing there, or a damaged journal: start over
            noted = json.loads(self.journal.read_text(encoding="utf-8"))
            held = self.path.stat().st_size
            if held <= noted["length"]:
                self.url, self.validator = noted["url"], noted["validator"]
                self.held, self.total = held, noted["length"]

    def continues(self, url: str) -> bool:
        """Whether ``url`` may continue what has arrived."""
        return self.total is not None and (self.checked or (self.url == url and self.validator is not None))

    def restart(self, total: int | None = None, url: str = "", validator: str | None = None) -> None:
        """Forget all bytes.

        Args:
            total: length of the file that comes now, in bytes; None if unknown, then it can't be resumed.
            url: where it comes from.
            validator: its ETag or Last-Modified; another one means another file.
        """
        self.path.write_bytes(b"")
        self.held, self.total, self.url, self.validator = 0, total, url, validator
        if not self.small:
            sync(self.path)  # before the journal: a power cut must not leave old bytes under a new journal
            write_atomic(self.journal, json.dumps({"length": total, "url": url, "validator": validator}) + "\n")

    def append(self, file: FileIO, content: bytes) -> None:
        """Write to the open ``path``; unbuffered, so that a full disk loses nothing that was counted."""
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]
        self.held += len(content)

    def finish(self) -> None:
        """Rename the complete file to the target, and remove the journal."""
        sync(self.path)
        self.path.replace(self.target)
        self.drop()

    def drop(self) -> None:
        """Remove what is left beside the target."""
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
            "Free some space, or set MLS_DATA to a folder on another disk"
        )


def advance_to(bar: Bar, done: int) -> None:
    """Set a bar to ``done`` units, which must not exceed its total."""
    if step := done - bar.done:
        bar.advance(step, step)
