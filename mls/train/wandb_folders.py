"""Writes and reads the run folders of Weights & Biases, in a process of its own: see `mls.train.weights_biases`.

python -m mls.train.wandb_folders work/<id>/wandb < {"info": ..., "rows": ...}     # prints how many rows they hold
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

Row = Mapping[str, float]

HEADER, BLOCK = b":W&B\xe1\xbe\x00", 32768
FULL, FIRST, LAST = 1, 2, 4
"""A ``.wandb`` file: after a header, records in LevelDB's log format (blocks; checksum, length and kind of a part)."""


def main() -> None:
    """Bring the folders up to date."""
    folder, given = Path(sys.argv[1]), json.load(sys.stdin)
    kept = keep_true(folder, given["rows"])
    if kept < len(given["rows"]):
        write(folder, given["info"], given["rows"][kept:])
        kept = keep_true(folder, given["rows"])
    print(kept)


def keep_true(folder: Path, rows: Sequence[Row]) -> int:
    """Remove each run folder whose rows are not the next of ``rows``; return how many rows the others hold."""
    count = 0
    found = [(read_folder(path), path) for path in folder.glob("offline-run-*")]
    # by their rows, since clocks are set back
    for own, path in sorted(found, key=lambda one: one[0][0]["step"] if one[0] else 0):
        if own and own == list(rows[count : count + len(own)]):
            count += len(own)
        else:
            shutil.rmtree(path)
    return count


def write(folder: Path, info: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write one more folder: params, ids and rows, and nothing of the machine, the code or the output."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        mode="offline", silent=True, console="off", symlink=False, use_dot_wandb=False,
        save_code=False, disable_code=True, disable_git=True, disable_job_creation=True, label_disable=True,
        x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True, x_disable_viewer=True,
        x_save_requirements=False, sagemaker_disable=True, program="", host="",
    )  # fmt: skip
    named = {key: info[key] for key in ("id", "name", "project")}
    with wandb.init(**named, config=info["params"], dir=folder.parent.resolve(), settings=settings) as run:
        for row in rows:
            run.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]), commit=True)
    wandb.teardown()  # the file is whole when its process has ended


def read_folder(folder: Path) -> list[dict[str, float]]:
    """The rows of a run folder."""
    return [row for file in folder.glob("*.wandb") for row in read_rows(file)]


def read_rows(file: Path) -> list[dict[str, float]]:
    """The logged rows of a ``.wandb`` file, up to its end or to where it is torn."""
    Record = import_module("wandb.proto.wandb_internal_pb2").Record  # its stub does not name it
    rows = []
    for content in records(file.read_bytes()):
        record = Record.FromString(content)
        if record.HasField("history"):
            values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            row = {name: float(json.loads(value)) for name, value in values.items() if not name.startswith("_")}
            rows.append({"step": float(values["_step"]), **row})
    return rows


def records(data: bytes) -> Iterator[bytes]:
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


if __name__ == "__main__":
    main()
