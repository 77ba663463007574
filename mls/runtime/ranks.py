"""Which of the processes that torchrun started this one is, from its environment; without torch."""

from __future__ import annotations

import os

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
"""Set by torchrun: processes that make one artifact together."""


def has_ranks() -> bool:
    """Whether this process is one of several that torchrun started."""
    return os.environ.get("WORLD_SIZE", "1") != "1"
