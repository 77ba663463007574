"""A folder of images with a ``labels.csv``: what its rows say, checked line by line.

file,split,desert,mountains          or        file,split,label
images/1.jpg,train,1,0                         images/1.jpg,train,desert

listing = read_listing(FolderDataset(source="folder"), Reader(Path("data/miml-scenes")))
"""

from __future__ import annotations

import csv
import io
from typing import NoReturn

from mls.data.reader import Entry, Listing, Reader, hold_out, in_order, unsafe
from mls.data.store import SPLITS
from mls.errors import MlsError
from mls.experiment.datasets import FolderDataset

FILE = "labels.csv"


def read_listing(config: FolderDataset, reader: Reader) -> Listing:
    """Read and check ``labels.csv``.

    With one column per class, classes keep the columns' order; with a ``label`` column they are its
    sorted values. Without val rows, a seeded share of train becomes val.

    Raises:
        MlsError: names the file, the line and the value.
    """
    rows = _read_rows(reader)
    _, header = rows[0]
    classes, multi_label = _classes(rows, reader)
    numbers = {name: i for i, name in enumerate(classes)}
    columns = {name: i for i, name in enumerate(header)}
    entries: dict[str, Entry] = {}
    first_seen: dict[str, int] = {}
    for line, row in rows[1:]:
        name, split = row[columns["file"]], row[columns["split"]]
        if reason := unsafe(name):
            _wrong(reader, line, f"file {name!r} {reason}")
        if name in entries:
            _wrong(reader, line, f"file {name!r} was listed before, on line {first_seen[name]}")
        if split not in SPLITS:
            _wrong(reader, line, f"split {split!r} is none of {', '.join(SPLITS)}")
        if not reader.has(name):
            _wrong(reader, line, f"file {name!r} is missing below {reader.root}")
        if multi_label:
            wanted = []
            for i, label in enumerate(classes):
                value = row[columns[label]]
                if value not in ("0", "1"):
                    _wrong(reader, line, f"column {label!r} is {value!r}; only 0 and 1 are allowed")
                wanted += [i] if value == "1" else []
        else:
            wanted = [numbers[row[columns["label"]]]]
        entries[name], first_seen[name] = Entry(name, split, wanted, []), line
    return Listing(classes, multi_label, _with_val(list(entries.values()), config, reader))


def _read_rows(reader: Reader) -> list[tuple[int, list[str]]]:
    """Return (line number, cells) of the header and every row; blank lines are skipped."""
    content, _ = reader.read(FILE)
    try:
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        rows = [(lines.line_num, row) for row in lines if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise MlsError(f"{reader.root / FILE}: not a CSV file in UTF-8 ({error})") from error
    if len(rows) < 2:
        raise MlsError(
            f"{reader.root / FILE}: holds no rows; it needs a header (file, split, ...) and one line per image"
        )
    for line, row in rows[1:]:
        if len(row) != len(rows[0][1]):
            _wrong(reader, line, f"has {len(row)} cells, the header {len(rows[0][1])}: {','.join(row)!r}")
    return rows


def _classes(rows: list[tuple[int, list[str]]], reader: Reader) -> tuple[list[str], bool]:
    """Return the class names and whether the set is multi-label."""
    line, header = rows[0]
    for column in ("file", "split"):
        if column not in header:
            _wrong(reader, line, f"column {column!r} is missing; there are: {', '.join(header)}")
    if len(set(header)) != len(header) or "" in header:
        _wrong(reader, line, f"column names must differ and not be empty: {', '.join(header)}")
    classes = [name for name in header if name not in ("file", "split")]
    if not classes:
        _wrong(reader, line, "there is neither a column 'label' nor one column per class")
    if "label" not in classes:
        return classes, True
    if len(classes) > 1:
        _wrong(reader, line, f"a column 'label' can't stand beside other class columns: {', '.join(classes)}")
    values = {line: row[header.index("label")] for line, row in rows[1:]}
    for number, value in values.items():
        if not value:
            _wrong(reader, number, "column 'label' is empty")
    return sorted(set(values.values())), False


def _with_val(entries: list[Entry], config: FolderDataset, reader: Reader) -> list[Entry]:
    """Return the entries in final order, with a val split."""
    entries = in_order(entries)
    count = {split: sum(entry.split == split for entry in entries) for split in SPLITS}
    if not count["val"]:
        chosen = hold_out(count["train"], config.val_share, config.seed)  # train comes first in final order
        entries = in_order(
            [Entry(e.name, "val" if i in chosen else e.split, e.classes, []) for i, e in enumerate(entries)]
        )
    if count["train"] + count["val"] < 2 or not count["train"] or not count["test"]:
        raise MlsError(f"{reader.root / FILE}: train needs two rows (one becomes val) and test one; there are {count}")
    return entries


def _wrong(reader: Reader, line: int, what: str) -> NoReturn:
    raise MlsError(f"{reader.root / FILE}, line {line}: {what}")
