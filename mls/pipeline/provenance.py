"""Where a number comes from: code, packages, machine and time, for ``artifact.json``."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "pycocotools", "pillow", "pyarrow", "snakemake", "dvc")


@dataclass(frozen=True)
class Clock:
    """Started when the work starts; ``finish`` gives the record."""

    started: datetime
    wall: float

    def finish(self) -> dict[str, Any]:
        """The volatile facts of one making."""
        return {
            "started": self.started.isoformat(timespec="seconds"),
            "wall_s": round(time.monotonic() - self.wall, 2),
            "host": platform.node(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "packages": package_versions(),
            "code": code(),
            **_devices(),
        }


def provenance() -> Clock:
    """Start the clock of one making; the code that runs is the code of now, not of the end."""
    code()
    return Clock(datetime.now(UTC), time.monotonic())


@cache
def code() -> dict[str, Any]:
    """Revision of the code that was imported, whether it had uncommitted changes, and a digest of it."""
    return {
        "revision": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", ".")),
        "digest": digest(),
    }


@cache
def digest() -> str:
    """sha256 over every module of this package, by sorted name: equal code, equal digest."""
    total = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        total.update(f"{file.relative_to(PACKAGE)}\0".encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Versions of what can move a number."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=PACKAGE, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _devices() -> dict[str, Any]:
    """Device, thread count and ranks, if this stage used torch at all; a GPU that was not used is not named."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    device = torch.cuda.get_device_name() if torch.cuda.is_initialized() else platform.processor() or "cpu"
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
    }
