"""What is downloaded in tests, and the whole file on disk."""

from __future__ import annotations

import hashlib
import random
from collections import namedtuple
from pathlib import Path

CONTENT = random.Random(0).randbytes(1_500_000)
SUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)
Usage = namedtuple("Usage", "total used free")


def is_clean(target: Path) -> bool:
    """The whole file, and nothing beside it but the lock."""
    assert target.read_bytes() == CONTENT
    return sorted(path.name for path in target.parent.iterdir()) == [target.name, f"{target.name}.lock"]
