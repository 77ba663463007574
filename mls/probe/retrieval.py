"""Label-wise retrieval: rank a gallery by cosine to each query, and evaluate the ranking for each label of the query.

    found = retrieve(gallery, queries, precision_at=[1, 10])     # `mls.probe.feature_set.Images`
    found.value, found.precision[10], found.per_class_C
    write_ranking(found, rows_M, image_names, "test", path)
    found, split = read_file(path, to_ranking)

For a query and one of its labels, the gallery images with that label should come first. Average precision is the mean
of the precision down to each of these images (the area); precision@k is their share of the first k. A ranking leaves
out gallery images for which the label is ignored. A label that all, or none, of the others have is left out: every
ranking would get the same. The value of a class is the mean over its queries, the value of a
set the mean over its classes. Nothing is trained and nothing is chosen.
Equally near images rank by row, see `mls.probe.knn`, which also defines the cosine of zeros.

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
import torch
from numpy.typing import NDArray
from torch import Tensor

from mls.metrics import Truth, told_apart
from mls.probe.bootstrap import mean_intervals
from mls.probe.columns import AGAIN, IMAGE, check_columns
from mls.probe.evaluation import class_metrics, names_of
from mls.probe.feature_set import Features, Images, check_finite
from mls.probe.fitting import Weights
from mls.probe.knn import CPU, Gallery, nearest, over_blocks
from mls.runtime.errors import MlsError

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Retrieved:
    """Values of each query and label, shares; NaN where the query lacks it or the gallery can't tell it apart."""

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
        """Return precision@k, a mean over the same classes."""
        return float(np.nanmean(over_queries(self.precision[k])))


def retrieval_metrics(found: Retrieved, split: str) -> dict[str, Any]:
    """Return the metrics of a retrieval for ``metrics.json``, percent.

    On test: ``mAP``, ``P@<k>``; on val only the first, as ``val``. Also `mls.probe.evaluation.class_metrics`, where
    the value of a class is the mean over its queries.
    """
    headline = "mAP" if split == "test" else "val"
    intervals = mean_intervals(found.ap_MC.astype(np.float64))
    return {
        headline: 100 * found.value,
        **({f"P@{k}": 100 * found.precision_at(k) for k in found.precision} if split == "test" else {}),
        **class_metrics(found.names, found.per_class_C, headline, intervals, split),
        "undefined_classes": names_of(found.names, np.isnan(found.per_class_C)),
        "classes_in_mean": int((~np.isnan(found.per_class_C)).sum()),
    }


def over_queries(values_MC: Values) -> Weights:
    """Return the mean over the queries that have a value, float64 (C,); NaN for a class without any."""
    has_MC = ~np.isnan(values_MC)
    sum_C = np.where(has_MC, values_MC, 0).sum(axis=0, dtype=np.float64)
    count_C = has_MC.sum(axis=0)
    return np.where(count_C, sum_C / np.maximum(count_C, 1), np.nan)


def retrieve(
    gallery: Images,
    queries: Images,
    *,
    precision_at: Sequence[int],
    device: torch.device = CPU,
    name: str = "retrieval",
) -> Retrieved:
    """Rank the gallery for each query, and evaluate the ranking for each of the query's labels.

    Args:
        gallery: N images to rank.
        queries: M images; their true classes are evaluated.
        precision_at: ks of precision@k.
        device: where the gallery is ranked.
        name: of the progress bar.

    Raises:
        MlsError: features are not finite; a k is above the number of gallery images that count for a class; no class
            has a query, and gallery images with and without it.
    """
    check_finite(gallery.features_ND, "gallery")
    check_finite(queries.features_ND, "query")
    counts_NC = ~gallery.ignored_NC
    asked = np.flatnonzero(queries.truth_NC.any(axis=0) & told_apart(gallery.truth_NC, gallery.ignored_NC))
    if not len(asked):
        raise MlsError("retrieval: no class has a query, and images with and without it in the gallery")
    shortest = asked[counts_NC[:, asked].sum(axis=0).argmin()]
    if max(precision_at) > counts_NC[:, shortest].sum():
        raise MlsError(
            f"precision_at: {max(precision_at)} is more than the {counts_NC[:, shortest].sum()} gallery images "
            f"that count for class {gallery.classes[shortest]!r}; lower it"
        )
    searched, ks = Gallery(gallery.features_ND, device), sorted(set(precision_at))
    relevant_NC, placed_NC = (torch.from_numpy(array_NC).to(device) for array_NC in (gallery.truth_NC, counts_NC))

    def evaluate(block_BD: Features, block_BC: Truth) -> Values:
        row_BN = nearest(searched.cosines(block_BD), len(searched))[1]
        values_BCV = np.full((*block_BC.shape, 1 + len(ks)), np.nan, dtype=np.float32)
        for c in asked:
            if (has_B := block_BC[:, c]).any():
                row_QN = row_BN[torch.from_numpy(has_B).to(device)]
                found_QV = evaluate_ranking(row_QN, relevant_NC[:, c], placed_NC[:, c], ks)
                values_BCV[has_B, c] = found_QV.cpu().numpy()
        return values_BCV

    parts = over_blocks(evaluate, [queries.features_ND, queries.truth_NC], len(searched), name)
    return _split_values(gallery.classes, np.concatenate(parts), ks)


def _split_values(names: list[str], values_MCV: Values, ks: Sequence[int]) -> Retrieved:
    """Split values into average precision (the first) and the precisions@k."""
    return Retrieved(names, values_MCV[:, :, 0], {k: values_MCV[:, :, 1 + index] for index, k in enumerate(ks)})


def evaluate_ranking(row_QN: Tensor, relevant_N: Tensor, counts_N: Tensor, ks: Sequence[int]) -> Tensor:
    """Return average precision and the precisions@k of rankings for one label, float32 (Q, 1 + len(ks)).

    Args:
        row_QN: rows of the gallery, the nearest first.
        relevant_N: which of them have the label; not all false.
        counts_N: which of them have a place in its ranking.
        ks: not above the number of those.
    """
    if not counts_N.all():
        row_QN = row_QN[counts_N[row_QN]].view(len(row_QN), -1)  # each ranking loses the same rows
    # Every ranking finds the same number R of images, so the places of all finds form a rectangle.
    place_QR = relevant_N[row_QN].nonzero()[:, 1].view(len(row_QN), -1) + 1
    number_R = torch.arange(1, place_QR.shape[1] + 1, dtype=torch.float64, device=place_QR.device)
    average_Q = (number_R / place_QR).mean(1)
    return torch.stack([average_Q, *((place_QR <= k).sum(1).double() / k for k in ks)], dim=1).float()


def write_ranking(
    found: Retrieved, rows_M: NDArray[np.int64], image_names: Sequence[str], split: str, path: Path
) -> None:
    """Write a retrieval as Parquet: ``image`` (the row of the data artifact), ``name`` and ``split`` of each query.

    Per class follow ``ap:<class>`` and ``p@<k>:<class>``, float32, null where the query has no value for it. The
    metrics follow from these columns.
    """
    columns = [rows_M, list(image_names), [split] * len(rows_M)]
    for c in range(len(found.names)):
        for values_MC in (found.ap_MC, *found.precision.values()):
            columns.append(pa.array(values_MC[:, c], pa.float32(), from_pandas=True))  # NaN is null
    pq.write_table(pa.table(columns, schema=_schema(found.names, list(found.precision))), path)


def _schema(names: Sequence[str], ks: Sequence[int]) -> pa.Schema:
    values = [f"{prefix}:{name}" for name in names for prefix in ("ap", *(f"p@{k}" for k in ks))]
    return pa.schema([*IMAGE, *((name, pa.float32()) for name in values)])


def to_ranking(table: pa.Table) -> tuple[Retrieved, str]:
    """Restore what `write_ranking` wrote, exactly: the values, and the split of their images.

    Raises:
        MlsError: the table's columns are missing or of a wrong type, its images are not of exactly one split, or its
            values are not shares.
    """
    names = [column.removeprefix("ap:") for column in table.schema.names if column.startswith("ap:")]
    ks = sorted({int(k[1]) for k in map(re.compile(r"p@([0-9]{1,9}):").match, table.schema.names) if k})
    schema = _schema(names, ks)
    split = check_columns(table, schema)
    columns = [table[name] for name in schema.names[3:]]
    values_MCV = np.stack([column.to_numpy() for column in columns], axis=1).reshape(len(table), len(names), -1)
    null_MCV = np.stack([column.is_null().to_numpy() for column in columns], axis=1).reshape(values_MCV.shape)
    if not (null_MCV | ((values_MCV >= 0) & (values_MCV <= 1))).all() or (null_MCV != null_MCV[:, :, :1]).any():
        raise MlsError(f"holds values outside 0 to 1, or only a part of a query's values for a class; {AGAIN}")
    if null_MCV.all():
        raise MlsError(f"holds no value of any query; {AGAIN}")
    return _split_values(names, values_MCV, ks), split
