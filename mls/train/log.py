"""Where the curves of a training go: rows for the artifact, a live file, and trackers that were asked for.

    curves = Curves(work, ["tensorboard"])
    curves.resume(state["curves"])  # after a kill: what the checkpoint knows, and nothing later
    with curves:
        curves.add({"step": 20, "loss": 6.93, "lr": 0.03})
    write_curves(curves.rows, out / "curves.csv")

The rows are the truth. While they grow, ``work/curves.csv``, ``work/tensorboard`` and ``work/dvclive`` show them.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Protocol

from mls.runtime.errors import MlsError
from mls.runtime.files import write_atomic

LIVE_EVERY = 30.0
"""Seconds between two writings of the live file."""
PACKAGES = {"tensorboard": "torch.utils.tensorboard", "dvclive": "dvclive"}
"""What each tracker of ``execution.trackers`` imports."""

Row = dict[str, float]


def write_curves(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV, whole or not at all.

    Columns are those of all rows in order of first appearance. Floats have six significant digits; a
    value that a row lacks, or that is NaN, is an empty cell.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    write_atomic(path, text.getvalue())


def cell(value: float) -> str:
    """A number as it stands in a CSV file; whole numbers keep every digit."""
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6g}"


class Tracker(Protocol):
    """Shows values by step."""

    def send(self, step: int, values: Row) -> None:
        """Show the values of a step."""

    def close(self) -> None:
        """Write what is pending."""


class TensorBoard:
    """Event files, for ``tensorboard --logdir work``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step tells a TensorBoard that is watching to drop what it had read of the removed files.
        self.writer = SummaryWriter(log_dir=str(folder), purge_step=0)

    def send(self, step: int, values: Row) -> None:
        """One scalar per value, on disk at once; an error of the writer's thread is raised here, too."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, global_step=step)
        self.writer.flush()

    def close(self) -> None:
        """End the writer's thread."""
        self.writer.close()


class DvcLive:
    """DVCLive's ``metrics.json`` and ``plots/metrics/*.tsv``, for ``dvc plots show`` and editors."""

    def __init__(self, folder: Path) -> None:
        from dvclive.live import Live

        class LocalLive(Live):
            """Files alone. Otherwise DVCLive would, whatever its arguments, turn a Git repository into a
            DVC one, and announce the run to DVC Studio wherever a token is set.
            """

            def _init_dvc(self) -> None:
                pass

            def _init_studio(self) -> None:
                pass

        self.live = LocalLive(dir=str(folder), save_dvc_exp=False, dvcyaml=None, report=None)

    def send(self, step: int, values: Row) -> None:
        """One metric per value. ``next_step`` and ``end`` are not for us: they leave marks in DVC's own folder."""
        self.live.step = step
        for name, value in values.items():
            self.live.log_metric(name, value)
        self.live.make_summary()

    def close(self) -> None:
        """Nothing is pending: every row is on disk once it is sent."""


TRACKERS: dict[str, Callable[[Path], Tracker]] = {"tensorboard": TensorBoard, "dvclive": DvcLive}


class Curves:
    """Rows of a training, each with its ``step``; shown while they grow.

    Trackers are opened afresh with all earlier rows when the block is entered. So they hold exactly the
    rows, each once and in order, whatever a killed process had sent after its last checkpoint or had not
    yet written, and whichever tracker was added in between. (The wall times of earlier rows are lost.)

    Raises:
        MlsError: a tracker is not installed.
        OSError: the disk is full, say; also while training: a curve that stays behind unsaid would mislead.
    """

    def __init__(self, folder: Path, trackers: Sequence[str], *, write: bool = True) -> None:
        """With ``write`` false (ranks other than the first) rows are only gathered."""
        self.rows: list[Row] = []
        self.folder, self.write = folder, write
        self.trackers = list(dict.fromkeys(trackers)) if write else []
        self._open: list[Tracker] = []
        self._written, self._due = 0, 0.0
        for name in self.trackers:
            check_installed(name)

    def resume(self, rows: Sequence[Row]) -> None:
        """Take the rows of a checkpoint; call it before the block is entered."""
        self.rows = list(rows)

    def add(self, row: Row) -> None:
        """Append a row and show it."""
        self.rows.append(row)
        for tracker in self._open:
            send(tracker, row)
        if self.write and time.monotonic() >= self._due:
            self._write()

    def close(self) -> None:
        """Bring the live file up to date and close the trackers."""
        while self._open:
            self._open.pop().close()
        if self.write and self._written != len(self.rows):
            self._write()

    def _write(self) -> None:
        write_curves(self.rows, self.folder / "curves.csv")
        self._written, self._due = len(self.rows), time.monotonic() + LIVE_EVERY

    def __enter__(self) -> Curves:
        for name in self.trackers:
            place = self.folder / name
            if place.exists():
                shutil.rmtree(place)
            tracker = TRACKERS[name](place)
            self._open.append(tracker)
            for row in self.rows:
                send(tracker, row)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(OSError):  # must not hide the error that ends the training (often the same full disk)
                self.close()


def send(tracker: Tracker, row: Row) -> None:
    """Show a row's values, except those it has none for (NaN)."""
    values = {key: value for key, value in row.items() if key != "step" and not math.isnan(value)}
    tracker.send(int(row["step"]), values)


def check_installed(tracker: str) -> None:
    """Import what a tracker needs.

    Raises:
        MlsError: it is not installed.
    """
    try:
        import_module(PACKAGES[tracker])
    except ImportError as error:
        raise MlsError(
            f"execution.trackers names {tracker!r}, which is not installed ({error}); "
            "pip install -e '.[trackers]' in the repository, or remove it from execution.trackers"
        ) from error
