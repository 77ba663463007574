"""Numbers in the environment, and which of torchrun's processes this one is; torch is not imported.

ranks().world == 1                        # not started by torchrun
number("MASTER_PORT", most=65535)         # or an error that says what it is instead
"""

from __future__ import annotations

import os
from typing import NamedTuple

from mls.runtime.errors import MlsError

ALONE = "start all ranks with torchrun, or unset RANK and WORLD_SIZE to train with one"


class Ranks(NamedTuple):
    """Processes that make one artifact together, as torchrun numbers them; 0 of 1 in any other process."""

    rank: int
    world: int
    local_rank: int
    """Index among the processes of this machine."""
    local_world: int


def ranks() -> Ranks:
    """Read what torchrun has set.

    Raises:
        MlsError: a value is not a number, or the rank is not below the number of ranks.
    """
    found = Ranks(
        rank=number("RANK", least=0, default=0),
        world=number("WORLD_SIZE", default=1),
        local_rank=number("LOCAL_RANK", least=0, default=0),
        local_world=number("LOCAL_WORLD_SIZE", default=1),
    )
    if found.rank >= found.world:
        known = f"WORLD_SIZE is {found.world}: ranks are 0 to {found.world - 1}"
        raise MlsError(f"RANK is {found.rank}, but {known}; {ALONE}")
    return found


def number(name: str, *, least: int = 1, most: int = 10**9, default: int | None = None) -> int:
    """Return an environment variable as a whole number; ``default``, if there is one, where it is not set or empty.

    Raises:
        MlsError: it is missing, not a number, or out of range.
    """
    value = os.environ.get(name, "").strip()
    if not value and default is not None:
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 10 or not least <= int(value) <= most:
        what = f"is {value[:40]!r}" if value else "is not set"
        raise MlsError(f"environment variable {name} {what}; it must be a whole number from {least} to {most}")
    return int(value)
