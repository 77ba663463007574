"""Small files that artifacts hold, written so that equal values give equal bytes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any


def write_csv(rows: list[dict[str, float]], path: Path) -> None:
    """Write rows of numbers; floats with six significant digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


def write_json(value: Any, path: Path, indent: int | None = None) -> None:
    """Write JSON with sorted keys; a NaN is an error."""
    separators = None if indent else (",", ":")
    text = json.dumps(value, indent=indent, separators=separators, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
