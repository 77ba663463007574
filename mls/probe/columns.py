"""Columns that the Parquet files of features and predictions share, and checks when such a file is read.

    schema = pa.schema([*IMAGE, *LABELS, ("score:cat", pa.float32())])
    found = read_file(path, parse)                # parse: table -> anything; errors name the file
    check_columns(table, schema)
    truth_NC = unlisted(table, "classes", classes=20)

Shape legend: N images, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mls.metrics import Truth
from mls.runtime.errors import MlsError

Parsed = TypeVar("Parsed")
SPLITS = ("test", "val")
"""The splits that a probe may be evaluated on."""
IMAGE = [("image", pa.int64()), ("name", pa.string()), ("split", pa.string())]
"""The row of the data artifact, the image's name, its split."""
LABELS = [("classes", pa.list_(pa.int32())), ("ignored", pa.list_(pa.int32()))]
"""Indices of an image's classes, and of those that count neither for nor against it."""
AGAIN = "make the probe again"


def read_file(path: Path, parse: Callable[[pa.Table], Parsed]) -> Parsed:
    """Read a Parquet file, and parse its table.

    Raises:
        MlsError: there is no such file, it is not readable, or ``parse`` refuses it; names the file.
    """
    try:
        with pq.ParquetFile(path) as file:  # pq.read_table would take parts of the path for partition columns
            return parse(file.read())
    except FileNotFoundError as error:
        raise MlsError(f"{path} does not exist; name a probe's predictions.parquet") from error
    except (OSError, pa.ArrowException) as error:
        raise MlsError(f"{path} is not a readable Parquet file ({str(error).strip()}); {AGAIN}") from error
    except MlsError as error:
        raise MlsError(f"{path}: {error}") from error


def check_columns(table: pa.Table, schema: pa.Schema) -> str:
    """Check that a table holds each column of a schema once and with its type, no others, and images of one split.

    Returns:
        The split.

    Raises:
        MlsError: it does not; names the columns or the splits.
    """
    # Parquet calls a list's items "element", Arrow "item"
    found, wanted = (
        Counter(f"{field.name} ({field.type})".replace("<element:", "<item:") for field in one)
        for one in (table.schema, schema)
    )
    differences = {"lacks": wanted - found, "has in addition": found - wanted}
    if found != wanted:
        text = " and ".join(f"{verb} {', '.join(columns)}" for verb, columns in differences.items() if columns)
        raise MlsError(f"its columns are wrong: it {text}; {AGAIN}")
    split, *others = table["split"].unique().to_pylist() or [None]
    if others or split not in SPLITS:
        raise MlsError(f"its images are not of one split, {' or '.join(SPLITS)}, but of {[split, *others]}; {AGAIN}")
    return split


def listed(mask_NC: Truth) -> pa.ListArray:
    """List each image's class indices, ascending."""
    ends = np.append(0, np.cumsum(mask_NC.sum(axis=1)))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(np.nonzero(mask_NC)[1], pa.int32()))


def unlisted(table: pa.Table, name: str, classes: int) -> Truth:
    """Turn a column of `listed` indices back into bool (N, C).

    Raises:
        MlsError: an index is not one of the classes.
    """
    lists = table[name].combine_chunks()
    indices = lists.flatten().to_numpy()
    if len(indices) and not (indices.min() >= 0 and indices.max() < classes):
        raise MlsError(f"column {name} holds indices outside its {classes} classes; {AGAIN}")
    mask_NC = np.zeros((len(table), classes), dtype=bool)
    mask_NC[np.repeat(np.arange(len(table)), lists.value_lengths().to_numpy()), indices] = True
    return mask_NC
