"""The tests marked ``gpu``: batch norm over ranks, no wait for the host in a step, crops, bf16, the losses of a CPU.

``python -m pytest tests/gpu`` with nothing but pytest itself; on a CPU the same tests' other half.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from gpu_parts.common import Bench, attempt, emit, main, say

ROOT = Path(__file__).resolve().parents[2]


def run(bench: Bench) -> None:
    """Run them in a process of their own."""
    with attempt("tests"):
        import pytest  # noqa: F401 - only to say that it is missing
    if "pytest" not in sys.modules:
        return
    marked = "gpu" if bench.device.type == "cuda" else "not gpu"
    # Options of pyproject.toml name plugins, which this environment need not have.
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", marked, "-o", "addopts=", "-q", "-rfEs"]
    command += ["--tb=short", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestConfigWarning"]
    command += ["-k", "crops or bf16"] if bench.smoke else []
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout, file=sys.stderr)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    others = ", ".join(f"{n} {what}" for what, n in counts.items() if what != "passed")
    emit(f"tests marked {marked}", counts.get("passed", 0), "passed", note=others)
    for line in re.findall(r"^(?:FAILED|ERROR|SKIPPED) .*", done.stdout, re.MULTILINE):
        say(**{"left_out" if line.startswith("SKIPPED") else "failed": line[:300]})
    if done.returncode and not counts.get("failed"):
        say(failed=f"pytest ended with {done.returncode}: {(done.stdout.strip().splitlines() or [''])[-1]}")


if __name__ == "__main__":
    main(run)
