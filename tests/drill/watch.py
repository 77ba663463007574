"""What the parts of the drill share: clones, waiting, and the comparison with the undisturbed run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.workflow.clone import Clone, new_clone

PATIENCE_S = 1800.0
"""Without anything that was waited for; long, for a machine that has much else to do."""


class Lost(Exception):
    """Something did not survive; says what."""


def clone_in(folder: Path) -> Clone:
    """A clone whose log is beside it."""
    (folder / "clone").mkdir(parents=True)
    return new_clone(folder / "clone")


def made(clone: Clone) -> list[Path]:
    """Seals of finished artifacts."""
    return list(clone.path.glob("artifacts/*/*/artifact.json"))


def until(true: Callable[[], object], life: subprocess.Popen[bytes] | None = None) -> bool:
    """Wait until something is true; False where the command has ended first."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        if life is not None and life.poll() is not None:
            return False
        if time.monotonic() > end:
            raise Lost(f"nothing happened for {PATIENCE_S:.0f} s")
        time.sleep(0.05)
    return True


def compare(expected: dict[str, str], clone: Clone) -> None:
    """Raise `Lost` with every file that is not there, is another, or is one too many."""
    mine = clone.digests()
    wrong = [
        f"{name} is {'another' if name in mine else 'missing'}" for name in expected if mine.get(name) != expected[name]
    ]
    wrong += [f"{name} is one too many" for name in mine.keys() - expected.keys()]
    if wrong:
        raise Lost("; ".join(sorted(wrong)))


def say(line: str) -> None:
    """At once, also into a pipe."""
    print(line, flush=True)
