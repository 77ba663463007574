"""Weights & Biases, always offline: rows as run folders on disk, which ``wandb sync`` sends if you run it.

    work/<id>/wandb/offline-run-<start>-<id>/run-<id>.wandb     # one folder per process that trained, one run id

A training only collects rows. When it ends or is stopped, `mls.train.wandb_folders` writes them in a process of its own
with a deadline: so wandb cannot fail, hang or change a training. Only rows that a checkpoint has are written, and what
the folders hold is read back. So rows are neither lost nor repeated, whenever a process is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from mls.runtime.errors import MlsError
from mls.runtime.locks import say
from mls.train import wandb_folders

DEADLINE = 60.0
"""Seconds for writing, which takes a few."""


@dataclass(frozen=True)
class RunInfo:
    """What a tracker shows beside the rows."""

    id: str = "run"
    name: str = "run"
    project: str = "mls"
    params: Mapping[str, Any] = field(default_factory=dict)


class WeightsBiases:
    """Folders of one run. A failure is reported and never raised; a resumption then writes the rows."""

    def __init__(self, folder: Path, info: RunInfo) -> None:
        """Check that the package is there.

        Raises:
            MlsError: it is not installed.
        """
        try:
            version("wandb")
        except PackageNotFoundError as error:
            raise MlsError(
                "execution.trackers names 'wandb', which is not installed; "
                "pip install -e '.[wandb]' in the repository, or remove it from execution.trackers"
            ) from error
        if os.environ.get("WANDB_MODE") == "online":
            say("Weights & Biases: WANDB_MODE=online has no effect; wandb sync sends the rows (docs/method.md)")
        self.folder, self.info = folder, info
        self.rows: list[dict[str, float]] = []
        self._durable = 0

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Collect a row."""
        self.rows.append({"step": step, **values})

    def saved(self) -> None:
        """Note that no resumption will make the rows so far again."""
        self._durable = len(self.rows)

    def close(self) -> None:
        """Write the rows that `saved` has noted; once more if some are missing."""
        rows = self.rows[: self._durable]
        missing, problem = len(rows), ""
        for _ in range(2):
            if missing:
                kept, problem = write_apart(self.folder, self.info, rows)
                missing = len(rows) - kept
        if missing:
            reason = problem or "wandb did not write them"
            say(f"warning: Weights & Biases: {missing} of {len(rows)} rows are only in curves.csv: {reason}")


def write_apart(folder: Path, info: RunInfo, rows: list[dict[str, float]]) -> tuple[int, str]:
    """Bring the folders up to date in a process of its own.

    Of the user's ``WANDB_*`` variables it sees none: so wandb finds no API key, no server and no running service.

    Returns:
        How many rows the folders hold, and what went wrong.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {f"WANDB_{name}_DIR": str(folder / "cache") for name in ("CONFIG", "CACHE", "DATA")}
    env |= {"WANDB_ERROR_REPORTING": "false"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *env.get("PYTHONPATH", "").split(os.pathsep)])
    command = [sys.executable, "-m", wandb_folders.__name__, str(folder)]
    try:
        with ExitStack() as stack:
            given, out, err = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3))
            json.dump({"info": asdict(info), "rows": rows}, given)
            given.seek(0)
            # of a session of its own: Ctrl-C is for the training
            process = subprocess.Popen(command, env=env, stdin=given, stdout=out, stderr=err, start_new_session=True)
            try:
                code = process.wait(DEADLINE)
            finally:
                _kill(process)
            out.seek(0)
            err.seek(0)
            said = [line.strip() for line in err.read().splitlines() if line.strip()] or [f"exit status {code}"]
            return (0, said[-1]) if code else (int(out.read()), "")
    except subprocess.TimeoutExpired:
        return 0, f"wandb did not end within {DEADLINE:.0f} s"
    except (OSError, ValueError) as error:
        return 0, str(error)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it and ``wandb-core``, if they are still there."""
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        for one in [*own.children(recursive=True), own]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()
