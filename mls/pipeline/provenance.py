"""Where a number comes from: code, packages, machine and time, for the manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from mls.runtime.ranks import ranks

PACKAGE = Path(__file__).parent.parent
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scikit-learn",
    "pycocotools",
    "faster-coco-eval",
    "pillow",
    "pyarrow",
    "snakemake",
    "dvc",
)


def start_record() -> Callable[[], dict[str, Any]]:
    """Start the clock of one build; the function that it returns stops it and gives the record."""
    code()  # now, not at the end: the files may be edited while the stage runs
    started, clock = datetime.now(UTC), time.monotonic()
    return lambda: {
        "started": started.isoformat(timespec="seconds"),
        "wall_s": round(time.monotonic() - clock, 2),
        "host": platform.node(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "packages": package_versions(),
        "code": code(),
        **_devices(),
    }


@cache
def code() -> dict[str, Any]:
    """The git revision of the imported code, whether it had uncommitted changes, and a digest of it."""
    return {
        "revision": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", ".")),
        "digest": digest(),
    }


@cache
def digest() -> str:
    """The start of a sha256 over this package's modules and its catalog: equal code has an equal digest.

    The catalog is data, but a failed download must be tried again once its address is corrected there.
    """
    total = hashlib.sha256()
    for file in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.toml")]):
        total.update(f"{file.relative_to(PACKAGE)}\0".encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can change a number."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=PACKAGE, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _devices() -> dict[str, Any]:
    """Device, threads and ranks, if the stage imported torch; a GPU that was not used is not named."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    device = torch.cuda.get_device_name() if torch.cuda.is_initialized() else platform.processor() or "cpu"
    return {"device": device, "threads": torch.get_num_threads(), "ranks": ranks().world}
