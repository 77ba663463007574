"""A folder of images: with a ``labels.csv``, checked line by line, or without labels.

file,split,desert,mountains          or        file,split,label
images/1.jpg,train,1,0                         images/1.jpg,train,desert

listing = read_listing(FolderDataset(source="folder"), Reader(Path("data/miml-scenes")))
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mls.config.datasets import FolderDataset
from mls.data.image_store import LABELLED
from mls.data.listing import Entry, Listing, check_classes, check_name, in_order, with_val
from mls.download.reader import Reader, unsafe
from mls.runtime.errors import MlsError
from mls.runtime.locks import say

FILE = "labels.csv"
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif")
"""Of images in a folder without labels, in any case."""


def read_listing(config: FolderDataset, reader: Reader) -> Listing:
    """Read and check ``labels.csv``.

    With one column per class, classes keep the columns' order; with a ``label`` column they are its
    sorted values. Without val rows, a seeded share of train becomes val.

    Raises:
        MlsError: names the file, the line and the value.
    """
    if not config.labels:
        return Listing([], True, in_order([Entry(name, "train", [], []) for name in images_below(reader.root)]))
    if not reader.has(FILE):
        raise MlsError(
            f"{reader.root / FILE} is missing; write it or, to pretrain on all images there without labels, set "
            "labels: false in the dataset's entry"
        )
    content, _ = reader.read(FILE)
    line, header = next(_rows(content, reader), (1, []))
    classes = _class_columns(header, f"{reader.root / FILE}, line {line}")
    multi_label = "label" not in classes
    if not multi_label:  # class indices need all labels; a second pass takes less memory than keeping the rows
        first: dict[str, int] = {}
        for line, cells in islice(_rows(content, reader), 1, None):
            first.setdefault(cells[header.index("label")], line)
        check_classes((f"{reader.root / FILE}, line {line}: column 'label'", name) for name, line in first.items())
        classes = sorted(first)
    numbers = {name: i for i, name in enumerate(classes)}
    entries: list[Entry] = []
    seen: dict[str, str] = {}
    for line, cells in islice(_rows(content, reader), 1, None):
        where, row = f"{reader.root / FILE}, line {line}", dict(zip(header, cells, strict=True))
        if row["split"] not in LABELLED:
            raise MlsError(f"{where}: split {row['split'][:80]!r} is none of {', '.join(LABELLED)}")
        if odd := [name for name in classes if row[name] not in ("0", "1")] if multi_label else []:
            raise MlsError(f"{where}: column {odd[0]!r} is {row[odd[0]][:80]!r}; only 0 and 1 are allowed")
        check_name(row["file"], where, f"line {line}", seen, reader)
        shown = [name for name in classes if row[name] == "1"] if multi_label else [row["label"]]
        entries.append(Entry(row["file"], row["split"], [numbers[name] for name in shown], []))
    return Listing(classes, multi_label, with_val(in_order(entries), config, reader))


def images_below(root: Path) -> Iterator[str]:
    """Yield the images at any depth, as paths below a folder; hidden files and folders, and other files, are left out.

    Raises:
        MlsError: a folder can't be read, a name can't be used, or there are fewer than two images.
    """
    found, others, seen = 0, 0, {root.resolve()}
    for folder, names, files in os.walk(root, onerror=_stop, followlinks=True):
        inside = [Path(folder) / name for name in names if not name.startswith(".")]
        names.clear()
        for place in sorted(inside, key=lambda one: (one.is_symlink(), one.name)):
            if place.resolve() not in seen:  # a link may lead back up
                names.append(place.name)
                seen.add(place.resolve())
        for file in sorted(name for name in files if not name.startswith(".")):
            if not file.lower().endswith(ENDINGS):
                others += 1
                continue
            name = (Path(folder) / file).relative_to(root).as_posix()
            if reason := unsafe(name):
                raise MlsError(f"{root}: image {name!r} {reason}")
            found += 1
            yield name
    if found < 2:
        raise MlsError(f"{root}: holds {found} images ({', '.join(ENDINGS)}); two are the least to work with")
    if others:
        say(f"note: {root}: {others:,} files that are not images by their names are left out")


def _stop(error: OSError) -> None:
    raise MlsError(f"{error.filename} can't be read ({error.strerror})") from error


def _rows(content: bytes, reader: Reader) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of the header and every row, one at a time; blank lines are skipped."""
    width = 0
    lines = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=""), strict=True)
    try:
        for cells in filter(None, lines):
            width = width or len(cells)
            if len(cells) != width:
                where = f"{reader.root / FILE}, line {lines.line_num}"
                raise MlsError(f"{where}: has {len(cells)} cells, the header {width}: {','.join(cells)[:200]!r}")
            yield lines.line_num, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise MlsError(f"{reader.root / FILE}: not a CSV file in UTF-8 ({error})") from error


def _class_columns(header: list[str], where: str) -> list[str]:
    """Return the columns that say the classes: one a class, or only ``label``."""
    check_classes((f"{where}: column {number}", name) for number, name in enumerate(header, 1))
    for column in ("file", "split"):
        if column not in header:
            raise MlsError(f"{where}: column {column!r} is missing; there are: {', '.join(header)[:200]}")
    columns = [name for name in header if name not in ("file", "split")]
    if not columns:
        raise MlsError(f"{where}: there is neither a column 'label' nor one column per class")
    if "label" in columns and len(columns) > 1:
        raise MlsError(f"{where}: a column 'label' can't stand beside other class columns: {', '.join(columns)[:200]}")
    return columns
