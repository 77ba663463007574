"""Columns that the Parquet files of features and predictions share, and checks when such a file is read.

    schema = pa.schema([*IMAGE, *LABELS, ("score:cat", pa.float32())])
    table = read_table(path)
    check_columns(table, schema)
    truth_NC = unlisted(table, "classes", classes=20)

Shape legend: N images, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mls.metrics import Truth
from mls.runtime.errors import MlsError

IMAGE = [("image", pa.int64()), ("name", pa.string()), ("split", pa.string())]
"""The row of the data artifact, the image's name, its split."""
LABELS = [("classes", pa.list_(pa.int32())), ("ignored", pa.list_(pa.int32()))]
"""Indices of an image's classes, and of those that count neither for nor against it."""
AGAIN = "make the probe again"


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file.

    Raises:
        MlsError: there is no such file, or it is not readable.
    """
    try:
        with pq.ParquetFile(path) as file:  # read_table would take parts of the path for partition columns
            return file.read()
    except FileNotFoundError as error:
        raise MlsError(f"{path} does not exist; name a probe's predictions.parquet") from error
    except (OSError, pa.ArrowException) as error:
        raise MlsError(f"{path} is not a readable Parquet file ({str(error).strip()}); {AGAIN}") from error


def check_columns(table: pa.Table, schema: pa.Schema) -> None:
    """Check that a table holds each column of a schema once and with its type, and no others.

    Raises:
        MlsError: it does not; names the columns.
    """
    found = table.schema
    missing = [name for name in dict.fromkeys(schema.names) if found.names.count(name) != 1]
    surplus = sorted(set(found.names) - set(schema.names))
    problems = [f"does not hold {', '.join(missing)} once"] if missing else []
    problems += [f"holds unknown columns ({', '.join(surplus)})"] if surplus else []
    problems = problems or [
        f"column {field.name} is {found.field(field.name).type}, not {field.type}"
        for field in schema
        if found.field(field.name).type != field.type
    ]
    if problems:
        raise MlsError(f"{' and '.join(problems)}; {AGAIN}")


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
