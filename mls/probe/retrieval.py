"""Label-wise retrieval: a gallery ranked by cosine to each query, judged once for each label of the query.

    found = retrieve(gallery_ND, gallery_NC, ignored_NC, query_MD, query_MC, precision_at=[1, 10], names=classes)
    found.value, found.precision[10], found.per_class_C
    write_ranking(found, rows_M, image_names, "test", path)
    found, split = read_ranking(path)

For a query and one of its labels, the images of the gallery with that label are what should come first. Average
precision is the mean, over these, of the precision down to each (the area); precision@k is their share of the first
k. Gallery images for which the label is ignored are taken out of that ranking. The value of a class is the mean over
its queries, the value of a set the mean over its classes. Nothing is trained and nothing is chosen.
Equally near images rank by row, see `mls.probe.knn`, which also says what the cosine of zeros is.

Shape legend: N gallery images, M queries, B queries of a block, Q of these with a label, D features, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mls.metrics import Truth
from mls.probe.bootstrap import LEVEL, RESAMPLES, mean_intervals, percent
from mls.probe.evaluation import AGAIN, SPLITS
from mls.probe.knn import Rows, cosines, directions, nearest, over_blocks
from mls.probe.linear import Features, Weights, check_finite
from mls.runtime.errors import MlsError

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Retrieved:
    """What was found for each query and label, shares; NaN where the query lacks the label or the gallery does."""

    names: list[str]
    ap_MC: Values
    precision: dict[int, Values]
    """k -> precision@k (M, C)."""

    @property
    def per_class_C(self) -> Weights:
        """Mean average precision over the queries of each class; NaN where it is undefined."""
        return over_queries(self.ap_MC)

    @property
    def value(self) -> float:
        """Mean of `per_class_C` over the classes where it is defined."""
        return float(np.nanmean(self.per_class_C))

    def precision_at(self, k: int) -> float:
        """Precision@k, a mean over the same classes."""
        return float(np.nanmean(over_queries(self.precision[k])))

    @property
    def undefined(self) -> list[str]:
        """Classes without a query, or without an image in the gallery."""
        return [name for name, value in zip(self.names, self.per_class_C, strict=True) if np.isnan(value)]


def summarise(found: Retrieved, split: str) -> dict[str, Any]:
    """Return the content of ``metrics.json``, percent.

    Of test: ``mAP``, ``P@<k>``; of val the first alone, as ``val``. ``per_class`` is the mean over a class's queries;
    None, and listed in ``undefined_classes``, where there is none. ``interval``: see `mls.probe.bootstrap`.
    """
    headline = "mAP" if split == "test" else "val"
    spread = mean_intervals(found.ap_MC.astype(np.float64))
    return {
        headline: 100 * found.value,
        **({f"P@{k}": 100 * found.precision_at(k) for k in found.precision} if split == "test" else {}),
        "per_class": {
            name: None if np.isnan(value) else 100 * float(value)
            for name, value in zip(found.names, found.per_class_C, strict=True)
        },
        "undefined_classes": found.undefined,
        "interval": {
            "covers": f"{split} sampling only",
            "resamples": RESAMPLES,
            "level": LEVEL,
            headline: percent(spread.mean),
            "per_class": dict(zip(found.names, map(percent, spread.per_class), strict=True)),
        },
    }


def over_queries(values_MC: Values) -> Weights:
    """Mean over the queries that have a value, float64 (C,); NaN where none has."""
    has_MC = ~np.isnan(values_MC)
    sum_C = np.where(has_MC, values_MC, 0).sum(axis=0, dtype=np.float64)
    count_C = has_MC.sum(axis=0)
    return np.where(count_C, sum_C / np.maximum(count_C, 1), np.nan)


def retrieve(
    gallery_ND: Features,
    gallery_NC: Truth,
    gallery_ignored_NC: Truth | None,
    query_MD: Features,
    query_MC: Truth,
    *,
    precision_at: Sequence[int],
    names: Sequence[str],
    threads: int = 1,
) -> Retrieved:
    """Rank the gallery for each query, judge the ranking for each of the query's labels.

    Args:
        gallery_ND: features of the gallery's images.
        gallery_NC: their classes, bool.
        gallery_ignored_NC: pairs of gallery image and class to leave out; None: none.
        query_MD: features of the queries.
        query_MC: their classes, bool; false where a class is ignored.
        precision_at: ks of precision@k.
        names: of the classes.
        threads: blocks of queries that are ranked at a time; no effect on the result.

    Raises:
        MlsError: features that are not finite; a k above the number of gallery images that count for a class; no
            class that both a query and a gallery image have.
    """
    check_finite(gallery_ND, "gallery")
    check_finite(query_MD, "query")
    counts_NC = np.ones_like(gallery_NC) if gallery_ignored_NC is None else ~gallery_ignored_NC
    asked_C = query_MC.any(axis=0) & gallery_NC.any(axis=0)
    asked = np.flatnonzero(asked_C)
    if not len(asked):
        raise MlsError("retrieval: no class has both a query and an image in the gallery")
    shortest = asked[counts_NC[:, asked].sum(axis=0).argmin()]
    if max(precision_at) > counts_NC[:, shortest].sum():
        raise MlsError(
            f"precision_at: {max(precision_at)} is more than the {counts_NC[:, shortest].sum()} gallery images "
            f"that count for class {names[shortest]!r}; lower it"
        )
    unit_ND = directions(gallery_ND)
    ks = sorted(set(precision_at))

    def judge(block_BD: Features, block_BC: Truth) -> Values:
        row_BN = nearest(cosines(block_BD, unit_ND), len(unit_ND))[1]
        values_BCV = np.full((*block_BC.shape, 1 + len(ks)), np.nan, dtype=np.float32)
        for c in asked:
            has_B = block_BC[:, c]
            values_BCV[has_B, c] = judge_ranking(row_BN[has_B], gallery_NC[:, c], counts_NC[:, c], ks)
        return values_BCV

    values_MCV = np.concatenate(over_blocks(judge, [query_MD, query_MC], len(unit_ND), threads))
    precision = {k: values_MCV[:, :, 1 + index] for index, k in enumerate(ks)}
    return Retrieved(list(names), values_MCV[:, :, 0], precision)


def judge_ranking(row_QN: Rows, relevant_N: Truth, counts_N: Truth, ks: Sequence[int]) -> Values:
    """Average precision and the precisions@k of rankings for one label, float32 (Q, 1 + len(ks)).

    Args:
        row_QN: rows of the gallery, the nearest first.
        relevant_N: which of them have the label; not all false.
        counts_N: which of them have a place in its ranking.
        ks: not above the number of those.
    """
    if not counts_N.all():
        row_QN = row_QN[counts_N[row_QN]].reshape(len(row_QN), int(counts_N.sum()))  # each ranking loses the same rows
    relevant_QN = relevant_N[row_QN]
    # Every ranking finds the same number R of images, so the places of all finds are one rectangle.
    place_QR = np.nonzero(relevant_QN)[1].reshape(len(row_QN), int(relevant_N.sum())) + 1
    average_Q = (np.arange(1, place_QR.shape[1] + 1) / place_QR).mean(axis=1)
    return np.stack([average_Q, *((place_QR <= k).sum(axis=1) / k for k in ks)], axis=1).astype(np.float32)


def write_ranking(found: Retrieved, rows_M: Rows, image_names: Sequence[str], split: str, path: Path) -> None:
    """Write what was found as Parquet: ``image`` (the row of the data artifact), ``name`` and ``split`` of each query.

    Then per class ``ap:<class>`` and ``p@<k>:<class>``, float32, null where the query has no value for it: all that
    the values of the set are made of.
    """
    columns = [
        pa.array(rows_M, pa.int64()),
        pa.array(list(image_names), pa.string()),
        pa.array([split] * len(rows_M), pa.string()),
    ]
    for c in range(len(found.names)):
        for values_MC in (found.ap_MC, *found.precision.values()):
            columns.append(pa.array(values_MC[:, c], pa.float32(), from_pandas=True))  # NaN is null
    pq.write_table(pa.table(columns, schema=_schema(found.names, list(found.precision))), path)


def _schema(names: Sequence[str], ks: Sequence[int]) -> pa.Schema:
    values = [f"{prefix}:{name}" for name in names for prefix in ("ap", *(f"p@{k}" for k in ks))]
    about = [("image", pa.int64()), ("name", pa.string()), ("split", pa.string())]
    return pa.schema([*about, *((name, pa.float32()) for name in values)])


def read_ranking(path: Path) -> tuple[Retrieved, str]:
    """Read what `write_ranking` wrote, exactly: the values, and the split whose images they are of.

    Raises:
        MlsError: no such file, no values of a retrieval, columns that are missing or of another type, images of no or
            of several splits, values that are no shares; names the file.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise MlsError(f"{path} is no readable parquet file ({str(error).strip()}); {AGAIN}") from error
    try:
        return _retrieved(table)
    except MlsError as error:
        raise MlsError(f"{path}: {error}") from error


def _retrieved(table: pa.Table) -> tuple[Retrieved, str]:
    found = table.schema
    names = [column.removeprefix("ap:") for column in found.names if column.startswith("ap:")]
    if not names:
        raise MlsError("holds no values of a ranking: name the predictions.parquet of a retrieval")
    ks = sorted({int(column[1]) for column in map(re.compile(r"p@([0-9]{1,9}):").match, found.names) if column})
    schema = _schema(names, ks)
    missing = [name for name in dict.fromkeys(schema.names) if found.names.count(name) != 1]
    surplus = sorted(set(found.names) - set(schema.names))
    if missing or surplus:
        problems = [f"does not hold {', '.join(missing)} once"] if missing else []
        problems += [f"holds {', '.join(surplus)}, which is no column of it"] if surplus else []
        raise MlsError(f"{' and '.join(problems)}; {AGAIN}")
    if wrong := [field.name for field in schema if found.field(field.name).type != field.type]:
        raise MlsError(f"column {wrong[0]} is {found.field(wrong[0]).type}, not {schema.field(wrong[0]).type}; {AGAIN}")
    splits = table["split"].unique().to_pylist()
    if len(splits) != 1 or splits[0] not in SPLITS:
        raise MlsError(f"its images are not of one split, {' or '.join(SPLITS)}, but of {splits}; {AGAIN}")
    columns = [table[name] for name in schema.names[3:]]
    values_MCV = np.stack([column.to_numpy() for column in columns], axis=1).reshape(len(table), len(names), -1)
    null_MCV = np.stack([column.is_null().to_numpy() for column in columns], axis=1).reshape(values_MCV.shape)
    if not (null_MCV | ((values_MCV >= 0) & (values_MCV <= 1))).all() or (null_MCV != null_MCV[:, :, :1]).any():
        raise MlsError(f"holds values that are no shares, or a part of a query's values for a class; {AGAIN}")
    if null_MCV.all():
        raise MlsError(f"holds no value of any query; {AGAIN}")
    precision = {k: values_MCV[:, :, 1 + index] for index, k in enumerate(ks)}
    return Retrieved(names, values_MCV[:, :, 0], precision), splits[0]
