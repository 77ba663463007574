"""Everything that only a GPU can tell, in at most 8 minutes: tests, speed, memory, agreement with the CPU.

    make gpu                                            # PYTHON=path names the interpreter; nothing is installed
    python benchmarks/gpu.py --parts pretrain transfer  # some parts
    python benchmarks/gpu.py --device cpu --smoke       # seconds, tiny shapes: does it work?

The interpreter needs torch (2.8 or later), torchvision and what benchmarks/gpu-requirements.txt lists. A package that
only one part needs, and that is missing, is named in the summary, and so is each failure: the rest goes on. Parts are
processes; one that is over its time is stopped, and what it had measured counts. Time that a part does not use goes to
those after it.

Lines are added to benchmarks/results/gpu.csv; what a CPU or a smoke run measures goes to ``--out`` only. The exit code
is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Timer
from typing import Any

from record import append

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "gpu.csv"
PARTS = {
    "data": ("photos", 25),
    "tests": ("checks", 75),
    "pretrain": ("pretraining", 185),
    "transfer": ("transfers", 90),
    "probe": ("probing", 65),
    "agree": ("agreement", 40),
}
"""Part -> its module in gpu_parts, and its seconds; 480 in all."""
NEEDS = f"; {sys.executable} needs torch, torchvision and what benchmarks/gpu-requirements.txt lists (pip install -r)"
LAST_WORDS = 80
"""Lines of a part's log that are shown after a failure."""
COLUMNS = [
    *("date", "part", "measured", "batch", "value", "unit", "peak_GiB", "goal", "note"),
    *("card", "driver", "cores", "torch", "torchvision", "python", "code"),
]


@dataclass
class Found:
    """What a part has said."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    """Notes, and what was left out, with the reason."""
    failures: list[str] = field(default_factory=list)


def main() -> None:
    """Run the parts and sum up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, a few steps")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS)[1:], default=list(PARTS)[1:])
    parser.add_argument("--out", type=Path, help="file of results; default: results/gpu.csv, on a GPU only")
    args = parser.parse_args()
    real = args.device == "cuda" and not args.smoke
    out = args.out or (RESULTS if real else None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part is ended too
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as folder:
        until = time.monotonic()
        for part in ["data", *args.parts]:
            module, seconds = PARTS[part]
            until += seconds * (10 if args.smoke else 1)  # a busy machine may try it
            command = [sys.executable, "-m", f"gpu_parts.{module}", "--device", args.device]
            print(f"{part} ...", flush=True)
            found[part] = run_part([*command, *["--smoke"] * args.smoke], Path(folder), until)
            if not found["data"].facts:
                failure = "\n".join(found[part].failures)
                sys.exit(failure + NEEDS * ("No module named" in failure))
            if out and found[part].rows:
                shared = {"date": datetime.now(UTC).date().isoformat(), "part": part, **found["data"].facts}
                append(out, [shared | row for row in found[part].rows], COLUMNS)
    print(summary(found))
    if out:
        print(f"lines added to {out}")
    sys.exit(any(one.failures for one in found.values()))


def run_part(command: Sequence[str], folder: Path, until: float) -> Found:
    """Run a part, until a time (of the monotonic clock) at most; collect what it says."""
    paths = [str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MLS_PLAIN": "1"}
    found, begun, stopped = Found(), time.monotonic(), False
    with (folder / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )

        def stop() -> None:
            nonlocal stopped
            stopped = True
            end(process)

        timer = Timer(max(1.0, until - begun), stop)
        timer.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("@"):
                    hear(json.loads(line[1:]), found)
            code = process.wait()
        finally:
            timer.cancel()
            end(process)  # where this process is stopped
        log.seek(0)
        lines = [line for line in log.read().splitlines() if line.strip()]
    if stopped:
        what = f"stopped after {time.monotonic() - begun:.0f} s, its time"
        found.failures.append(f"{what}; what it had not measured by then is missing")
    elif code:
        found.failures.append(f"ended with {code}: {''.join(lines[-1:])}")
    if found.failures:
        print("\n".join(lines[-LAST_WORDS:]), file=sys.stderr)
    return found


def end(process: subprocess.Popen[str]) -> None:
    """Kill a part and its workers, those that still run."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def hear(said: dict[str, Any], found: Found) -> None:
    """Take a line of a part (see `gpu_parts.common`), and show what it has measured."""
    if "row" in said:
        found.rows.append(said["row"])
        print("  " + shown(said["row"]), flush=True)
    found.facts |= said.get("facts", {})
    found.failures += [said["failed"]] if "failed" in said else []
    found.remarks += [f"left out: {said['left_out']}"] if "left_out" in said else []
    found.remarks += [said["note"]] if "note" in said else []


def shown(row: dict[str, Any]) -> str:
    """A measurement, as a line to read."""
    batch = f"batch {row['batch']}" if row.get("batch", "") != "" else ""
    more = [f"peak {row['peak_GiB']} GiB"] if row.get("peak_GiB", "") != "" else []
    more += [f"goal {row['goal']}"] if row.get("goal") else []
    more += [row["note"]] if row.get("note") else []
    return f"{row['measured']:64} {batch:10} {row['value']:>10,.5g} {row['unit']:9} {'; '.join(more)}".rstrip()


def summary(found: dict[str, Found]) -> str:
    """All that was found, for a person."""
    facts = found["data"].facts
    lines = ["", ", ".join(f"{name} {value}" for name, value in facts.items() if value != "")]
    for part, one in found.items():
        lines += [f"\n{part}", *(f"  {shown(row)}" for row in one.rows)]
        lines += [f"  {remark}" for remark in one.remarks] + [f"  FAILED: {failure}" for failure in one.failures]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
