"""Measure commands, in copies of the project or of an earlier revision of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1].resolve()
PARTS = ("mls", "workflow", "Snakefile", "params.yaml", "data.lock", "experiments")
"""What a copy needs to be a clone for the commands."""


class Taken(NamedTuple):
    """By one process and those it waited for."""

    cpu_s: float
    wall_s: float
    peak_MiB: float


def run(command: list[str], folder: Path, stop: str = "", may: int = 0) -> Taken:
    """Run a command that must succeed, or exit with ``may``; with ``stop``, ask it to stop once it has said that: it
    exits with 75, unless it was done before."""
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "MLS_PLAIN": "1"},
    )
    assert process.stderr is not None
    said = ""
    for line in map(bytes.decode, process.stderr):
        said += line
        if stop and stop in line:
            time.sleep(1)  # what is said before the first step is said before the job listens to signals
            process.terminate()
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in {0, may, 75 if stop else 0}:
        raise SystemExit(f"{' '.join(command)} failed\n{said[-2000:]}")
    return Taken(used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / 1024)


def copy_tree(to: Path) -> Path:
    """The project as the working tree holds it, as git knows it or would add it."""
    listed = ["git", "ls-files", "-co", "--exclude-standard", "--", *PARTS]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, to / name)
    return to


def check_out(revision: str, to: Path) -> Path:
    """The project of a revision."""
    to.mkdir()
    archive = subprocess.run(["git", "archive", revision, *PARTS], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(to)], input=archive.stdout, check=True)
    return to
