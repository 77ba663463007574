"""Which of torchrun's processes this one is, read from the environment without importing torch."""

from __future__ import annotations

import os

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
"""Set by torchrun for processes that make one artifact together; 0 of 1 in any other process."""
