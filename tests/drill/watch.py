"""Shared by the parts of the drill: clones, waiting, and the comparison with the undisturbed run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.workflow.clone import Clone, new_clone

PATIENCE_S = 1800.0
"""Longest wait for anything; generous, because the machine may be busy."""


class Lost(Exception):
    """Something did not survive; the message says what."""


def clone_in(folder: Path) -> Clone:
    """A new clone with its log beside it."""
    (folder / "clone").mkdir(parents=True)
    return new_clone(folder / "clone")


def made(clone: Clone) -> list[Path]:
    """Manifests of finished artifacts."""
    return list(clone.path.glob("artifacts/*/*/artifact.json"))


def until(true: Callable[[], object], life: subprocess.Popen[bytes] | None = None) -> bool:
    """Wait until something is true; False if the command ended first."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        if life is not None and life.poll() is not None:
            return False
        if time.monotonic() > end:
            raise Lost(f"nothing happened for {PATIENCE_S:.0f} s")
        time.sleep(0.05)
    return True


def compare(expected: dict[str, str], clone: Clone) -> None:
    """Raise `Lost` with every file that is missing, different or unexpected."""
    mine = clone.digests()
    wrong = [
        f"{name} is {'different' if name in mine else 'missing'}"
        for name in expected
        if mine.get(name) != expected[name]
    ]
    wrong += [f"{name} is unexpected" for name in mine.keys() - expected.keys()]
    if wrong:
        raise Lost("; ".join(sorted(wrong)))


def say(line: str) -> None:
    """Print at once, even into a pipe."""
    print(line, flush=True)
