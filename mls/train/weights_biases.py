"""Weights & Biases, always offline: rows as run folders on disk, which ``wandb sync`` sends if you run it.

    work/<id>/wandb/offline-run-<start>-<id>/run-<id>.wandb     # one folder per process that trained, one run id

The rule that makes rows neither lost nor repeated over a run's folders, whenever a process is killed: a row is handed
over only once a checkpoint has it, and what the folders hold is read back, since wandb reports no failed write.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mls.runtime.errors import MlsError
from mls.runtime.locks import say

if TYPE_CHECKING:
    import wandb

Result = TypeVar("Result")

HEADER, BLOCK = b":W&B\xe1\xbe\x00", 32768
FULL, FIRST, LAST = 1, 2, 4
"""A ``.wandb`` file: after a header, records in LevelDB's log format (blocks; checksum, length and kind of a part)."""


@dataclass(frozen=True)
class RunInfo:
    """What a tracker shows beside the rows."""

    id: str = "run"
    name: str = "run"
    project: str = "mls"
    params: Mapping[str, Any] = field(default_factory=dict)


class WeightsBiases:
    """Folders of one run; `saved` hands over the rows that `send` has collected.

    A failure (a full disk, a killed ``wandb-core``) is reported once and never raised. The rows are then sent from
    memory when the training ends, or from its checkpoint when it resumes.
    """

    def __init__(self, folder: Path, info: RunInfo) -> None:
        """Check that the package is there.

        Raises:
            MlsError: it is not installed.
        """
        if os.environ.get("WANDB_MODE") == "online":
            say("Weights & Biases: WANDB_MODE=online has no effect; wandb sync sends the rows (docs/method.md)")
        with _apart(folder):
            try:
                import wandb
                from wandb.proto import wandb_internal_pb2  # noqa: F401 (any folder "wandb" is importable)
            except ImportError as error:
                raise MlsError(
                    f"execution.trackers names 'wandb', which is not installed ({error}); "
                    "pip install -e '.[wandb]' in the repository, or remove it from execution.trackers"
                ) from error
        self._wandb, self.folder, self.info = wandb, folder, info
        self.rows: list[dict[str, float]] = []
        self._durable = self._sent = 0
        self._run: wandb.Run | None = None
        self._resources = ExitStack()
        self._failed = False

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Collect a row."""
        self.rows.append({"step": step, **values})

    def saved(self) -> None:
        """Hand over all rows so far: no resumption will make them again."""
        self._durable = len(self.rows)
        if not self._failed:
            self._try(self._hand_over)

    def close(self) -> None:
        """End ``wandb-core``; send once more what it has not written."""
        self._finish()
        kept = self._try(self._kept) or 0
        if kept < self._durable:
            self._try(self._hand_over)
            self._finish()
            kept = self._try(self._kept) or 0
        if kept < self._durable:
            say(f"Weights & Biases: {self._durable - kept} of {self._durable} rows are only in curves.csv")

    def _try(self, action: Callable[[], Result]) -> Result | None:
        """Call it; report the first failure. (`wandb.teardown` exits the process if ``wandb-core`` was killed.)"""
        try:
            return action()
        except (Exception, SystemExit) as error:
            if not self._failed:
                reason = (str(error).splitlines() or [""])[0] or type(error).__name__
                say(f"warning: Weights & Biases: {reason}; the training goes on; its rows are sent again at its end")
            self._failed = True
            return None

    def _kept(self) -> int:
        return keep_true(self.folder, self.rows[: self._durable])

    def _hand_over(self) -> None:
        if self._run is None:
            self._sent = self._kept()
            if self._sent == self._durable:
                return
            self._run = self._start()
        for row in self.rows[self._sent : self._durable]:
            values = {name: value for name, value in row.items() if name != "step"}
            self._run.log(values, step=int(row["step"]), commit=True)
        self._sent = self._durable

    def _start(self) -> wandb.Run:
        """Begin a folder that records params, ids and rows, and nothing of the machine, the code or the output."""
        self._resources.enter_context(_apart(self.folder))
        self._resources.callback(self._try, self._wandb.teardown)  # also if the rest of this fails
        settings = self._wandb.Settings(
            mode="offline", silent=True, console="off", symlink=False, use_dot_wandb=False,
            save_code=False, disable_code=True, disable_git=True, disable_job_creation=True, label_disable=True,
            x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True, x_disable_viewer=True,
            x_save_requirements=False, sagemaker_disable=True, program="", host="", x_transaction_log_flush_interval=2,
        )  # fmt: skip
        info = self.info
        place = self.folder.parent.resolve()
        return self._wandb.init(
            id=info.id, name=info.name, project=info.project, config=dict(info.params), dir=place, settings=settings
        )

    def _finish(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            self._try(run.finish)
        self._resources.close()


@contextmanager
def _apart(folder: Path) -> Iterator[None]:
    """Keep the user's own use of wandb and this one apart: settings, login, caches and hooks.

    Without its variables wandb finds no API key, no server and no running service; it sends no error reports.
    """
    place = str(folder / "cache")
    own = {"WANDB_ERROR_REPORTING": "false"}
    own |= {f"WANDB_{name}_DIR": place for name in ("CONFIG", "CACHE", "DATA")}
    before = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    hooks = sys.exit, sys.excepthook
    for name in before:
        del os.environ[name]
    os.environ.update(own)
    try:
        yield
    finally:
        sys.exit, sys.excepthook = hooks
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            del os.environ[name]
        os.environ.update(before)


def keep_true(folder: Path, rows: Sequence[Mapping[str, float]]) -> int:
    """Remove each run folder whose rows are not the next of ``rows``; return how many rows the others hold."""
    count = 0
    for path in sorted(folder.glob("offline-run-*")):
        found = [row for file in path.glob("*.wandb") for row in read_rows(file)]
        if found and found == list(rows[count : count + len(found)]):
            count += len(found)
        else:
            shutil.rmtree(path)
    return count


def read_rows(file: Path) -> list[dict[str, float]]:
    """The logged rows of a ``.wandb`` file, up to its end or to where it is torn."""
    Record = import_module("wandb.proto.wandb_internal_pb2").Record  # its stub does not name it
    rows = []
    for content in _records(file.read_bytes()):
        record = Record.FromString(content)
        if record.HasField("history"):
            values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            row = {name: float(json.loads(value)) for name, value in values.items() if not name.startswith("_")}
            rows.append({"step": float(values["_step"]), **row})
    return rows


def _records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log whose checksums hold."""
    position, whole = len(HEADER), b""
    while position + 7 <= len(data) and data.startswith(HEADER):
        left = BLOCK - position % BLOCK
        if left < 7:  # no part begins there
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        part = data[position + 7 : position + 7 + length]
        if zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
            return
        position += 7 + length
        whole = part if kind in (FULL, FIRST) else whole + part
        if kind in (FULL, LAST):
            yield whole
