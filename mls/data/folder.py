"""A folder of images with a ``labels.csv``: what its rows say, checked line by line.

file,split,desert,mountains          or        file,split,label
images/1.jpg,train,1,0                         images/1.jpg,train,desert

listing = read_listing(FolderDataset(source="folder"), Reader(Path("data/miml-scenes")))
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain, islice
from typing import NoReturn

from mls.config.datasets import FolderDataset
from mls.data.image_store import LABELLED
from mls.data.listing import Entry, Listing, hold_out, in_order
from mls.download.reader import Reader, unsafe
from mls.runtime.errors import MlsError

FILE = "labels.csv"


def read_listing(config: FolderDataset, reader: Reader) -> Listing:
    """Read and check ``labels.csv``.

    With one column per class, classes keep the columns' order; with a ``label`` column they are its
    sorted values. Without val rows, a seeded share of train becomes val.

    Raises:
        MlsError: names the file, the line and the value.
    """
    content, _ = reader.read(FILE)
    classes, multi_label, header = _classes(content, reader)
    numbers = {name: i for i, name in enumerate(classes)}
    columns = {name: i for i, name in enumerate(header)}
    entries: dict[str, Entry] = {}
    first_seen: dict[str, int] = {}
    for line, row in islice(_rows(content, reader), 1, None):
        name, split = row[columns["file"]], row[columns["split"]]
        if reason := unsafe(name):
            _wrong(reader, line, f"file {name!r} {reason}")
        if name in entries:
            _wrong(reader, line, f"file {name!r} was listed before, on line {first_seen[name]}")
        if split not in LABELLED:
            _wrong(reader, line, f"split {split!r} is none of {', '.join(LABELLED)}")
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


def _rows(content: bytes, reader: Reader) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of the header and every row, one at a time; blank lines are skipped."""
    cells = 0
    try:
        lines = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=""), strict=True)
        for row in lines:
            if row and cells and len(row) != cells:
                _wrong(reader, lines.line_num, f"has {len(row)} cells, the header {cells}: {','.join(row)!r}")
            if row:
                cells = cells or len(row)
                yield lines.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise MlsError(f"{reader.root / FILE}: not a CSV file in UTF-8 ({error})") from error


def _classes(content: bytes, reader: Reader) -> tuple[list[str], bool, list[str]]:
    """Return the class names, whether the set is multi-label, and the header."""
    rows = _rows(content, reader)
    first = next(rows, None)
    second = next(rows, None)
    if first is None or second is None:
        raise MlsError(
            f"{reader.root / FILE}: holds no rows; it needs a header (file, split, ...) and one line per image"
        )
    line, header = first
    for column in ("file", "split"):
        if column not in header:
            _wrong(reader, line, f"column {column!r} is missing; there are: {', '.join(header)}")
    if len(set(header)) != len(header) or "" in header:
        _wrong(reader, line, f"column names must differ and not be empty: {', '.join(header)}")
    classes = [name for name in header if name not in ("file", "split")]
    if not classes:
        _wrong(reader, line, "there is neither a column 'label' nor one column per class")
    if "label" not in classes:
        return classes, True, header
    if len(classes) > 1:
        _wrong(reader, line, f"a column 'label' can't stand beside other class columns: {', '.join(classes)}")
    values = set()
    for number, row in chain([second], rows):
        value = row[header.index("label")]
        if not value:
            _wrong(reader, number, "column 'label' is empty")
        values.add(value)
    return sorted(values), False, header


def _with_val(entries: list[Entry], config: FolderDataset, reader: Reader) -> list[Entry]:
    """Return the entries in final order, with a val split."""
    entries = in_order(entries)
    count = {split: sum(entry.split == split for entry in entries) for split in LABELLED}
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
