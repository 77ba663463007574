"""Write files that appear whole or not at all, and small files whose bytes depend only on their values."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mls.runtime.errors import MlsError


def write_csv(rows: list[dict[str, float]], path: Path) -> None:
    """Write rows of numbers as CSV; floats with six significant digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


def write_json(value: Any, path: Path, indent: int | None = None) -> None:
    """Write JSON with sorted keys; NaN is an error."""
    separators = None if indent else (",", ":")
    text = json.dumps(value, indent=indent, separators=separators, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write; its content appears at ``path`` whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_file(path) as file:
        file.write(text.encode())


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def out_of_space(error: BaseException | None) -> bool:
    """Whether a full disk caused an error; torch and safetensors wrap the OSError in errors of their own."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def explain_full_disk(where: Path) -> Iterator[None]:
    """Turn 'no space left' into one line that says which disk is full and what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MlsError) or not out_of_space(error):  # an MlsError already names its disk
            raise
        raise MlsError(
            f"the disk that holds {where.resolve()} is full; nothing half-written was kept. "
            "Free some space (mls gc lists what nothing needs) and run the same command again"
        ) from error
