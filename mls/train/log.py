"""Where the curves of a training go: rows for the artifact, a live file, and the trackers that were asked for.

    curves = Curves(work, ["tensorboard"])
    curves.resume(state["curves"])  # after a kill: exactly the rows that the checkpoint knows
    with curves:
        curves.add({"step": 20, "loss": 6.93, "lr": 0.03})
    write_curves(curves.rows, out / "curves.csv")

The rows are the truth. While they grow, ``work/curves.csv`` and each tracker's folder show them.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mls.runtime.errors import MlsError
from mls.runtime.files import write_atomic
from mls.train.weights_biases import RunInfo, WeightsBiases

LIVE_EVERY = 30.0
"""Seconds between two writes of the live file."""

Row = dict[str, float]


def write_curves(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV, whole or not at all.

    Columns are those of all rows in order of first appearance. Floats have six significant digits; a value that a row
    lacks, or that is NaN, is an empty cell.
    """
    import pandas as pd  # slow to import, and a step can be measured without it

    write_atomic(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n"))


class Tracker(Protocol):
    """Shows rows in a folder. It gets all earlier rows first, whatever it has already shown of them."""

    def send(self, step: int, values: Row) -> None:
        """Show a row."""

    def saved(self) -> None:
        """A checkpoint has all rows so far, or the training is over: none of them will be made again."""

    def close(self) -> None:
        """Release what is open."""


def emptied(folder: Path) -> Path:
    """The folder's path, without what an earlier process left there."""
    if folder.exists():
        shutil.rmtree(folder)
    return folder


class TensorBoard:
    """Event files, for ``tensorboard --logdir work``."""

    def __init__(self, folder: Path, info: RunInfo) -> None:
        """Open the writer.

        Raises:
            MlsError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MlsError(
                f"execution.trackers names 'tensorboard', which is not installed ({error}); "
                "pip install -e '.[trackers]' in the repository, or remove it from execution.trackers"
            ) from error
        # purge_step tells a TensorBoard that is watching to drop what it has read from the removed files.
        self.writer = SummaryWriter(log_dir=str(emptied(folder)), purge_step=0)

    def send(self, step: int, values: Row) -> None:
        """Write one scalar per value to disk; an error of the writer's thread is raised here too."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, global_step=step)
        self.writer.flush()

    def saved(self) -> None:
        """Nothing to do: a resumption removes the extra rows."""

    def close(self) -> None:
        """End the writer's thread."""
        self.writer.close()


class DvcLive:
    """Files as DVCLive writes them, for ``dvc plots show`` and editors: ``metrics.json``, ``plots/metrics/*.tsv``.

    DVCLive itself is not used: whatever its arguments, it turns a Git repository into a DVC one and sends the run to
    DVC Studio if a token is set.
    """

    def __init__(self, folder: Path, info: RunInfo) -> None:
        emptied(folder)
        self.summary, self.plots = folder / "metrics.json", folder / "plots" / "metrics"
        self.plots.mkdir(parents=True)
        self.latest: Row = {}

    def send(self, step: int, values: Row) -> None:
        """Append one line per value, and update the summary."""
        for name, value in values.items():
            with (self.plots / f"{name}.tsv").open("a", encoding="utf-8") as file:
                file.write(f"{step}\t{value}\n" if file.tell() else f"step\t{name}\n{step}\t{value}\n")
        self.latest |= values | {"step": step}
        write_atomic(self.summary, json.dumps(self.latest, indent=4))

    def saved(self) -> None:
        """Nothing to do: a resumption removes the extra rows."""

    def close(self) -> None:
        """Nothing is pending: `send` closes its files."""


TRACKERS: dict[str, Callable[[Path, RunInfo], Tracker]] = {
    "tensorboard": TensorBoard,
    "dvclive": DvcLive,
    "wandb": WeightsBiases,
}
"""Every value of ``execution.trackers``."""


class Curves:
    """Rows of a training, each with its ``step``; shown while they grow.

    Entering the block opens each tracker and sends it all earlier rows. So it shows exactly the rows, each once and in
    order, whatever a killed process had sent after its last checkpoint or had not yet written, and whichever tracker
    was added in between. (The wall times of earlier rows are lost.)

    Raises:
        MlsError: a tracker is not installed.
        OSError: the disk is full, say. It stops the training: a curve that silently falls behind would mislead.
            (`WeightsBiases` reports it instead: it shows nothing before the end.)
    """

    def __init__(
        self, folder: Path, trackers: Sequence[str], *, info: RunInfo | None = None, write: bool = True
    ) -> None:
        """Prepare; with ``write`` false (all ranks but the first) rows are only collected."""
        self.rows: list[Row] = []
        self.folder, self.info, self.write = folder, info or RunInfo(), write
        self.trackers = list(dict.fromkeys(trackers)) if write else []
        self._open: list[Tracker] = []
        self._written, self._due = 0, 0.0

    def resume(self, rows: Sequence[Row]) -> None:
        """Take the rows of a checkpoint; call it before the block is entered."""
        self.rows = list(rows)

    def add(self, row: Row) -> None:
        """Append a row and show it."""
        self.rows.append(row)
        self._send(row)
        if time.monotonic() >= self._due:
            self._write()

    def saved(self) -> None:
        """Note that a checkpoint has all rows so far."""
        for tracker in self._open:
            tracker.saved()

    def _send(self, row: Row) -> None:
        """Show a row's values, except those that are NaN."""
        values = {key: value for key, value in row.items() if key != "step" and not math.isnan(value)}
        for tracker in self._open:
            tracker.send(int(row["step"]), values)

    def _write(self) -> None:
        if self.write and self._written != len(self.rows):
            write_curves(self.rows, self.folder / "curves.csv")
            self._written, self._due = len(self.rows), time.monotonic() + LIVE_EVERY

    def __enter__(self) -> Curves:
        for name in self.trackers:
            self._open.append(TRACKERS[name](self.folder / name, self.info))
        if self._open:
            for row in self.rows:
                self._send(row)
        self.saved()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # An error here must not hide the one that ends the training (often the same full disk).
        with suppress(*([OSError] if kind else [])):
            if kind is None:
                self.saved()
            while self._open:
                self._open.pop().close()
            self._write()
