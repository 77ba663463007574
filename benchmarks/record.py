"""Append the rows of a benchmark to its file of results."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def append(file: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> None:
    """Append rows to a CSV file, which begins with a header.

    Args:
        file: made if it is not there.
        rows: column -> value.
        columns: their order; default: that of the first row. A row may lack some of them.
    """
    file.parent.mkdir(exist_ok=True)
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, columns or list(rows[0]), restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
