"""Scores of a split's images and their labels: ``predictions.parquet``, and the metrics that follow from it.

    found = Evaluation(rows_N, names, "test", classes, multi_label, truth_NC, ignored_NC, scores_NC, decided=True)
    write_predictions(found, out / "predictions.parquet")
    metrics = summarise(read_file(out / "predictions.parquet", to_evaluation))     # the same as summarise(found)

| column | content |
|---|---|
| ``image``, ``name``, ``split`` | the row of the data artifact, the image's name, ``test`` or ``val`` |
| ``classes``, ``ignored`` | indices of its classes, and of those that count neither for nor against it |
| ``score:<class>`` | float32, one column per class, in the classes' order |

The schema's metadata holds JSON of ``classes``, ``multi_label``, ``decided`` and ``untrained`` under ``mls``, so the
file says everything that a metric needs. Equal scores give equal bytes.

Shape legend: N images, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from mls.metrics import Scores, Truth, average_precisions, decisions, hits, mean_average_precision, told_apart, top1
from mls.probe.bootstrap import LEVEL, RESAMPLES, Interval, Intervals, average_precision_intervals, mean_intervals
from mls.probe.columns import AGAIN, IMAGE, LABELS, check_columns, listed, unlisted
from mls.runtime.errors import MlsError

KEY = b"mls"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of some images and their labels: everything that a metric needs.

    Raises:
        MlsError: two classes with the same name, scores that are NaN, a class that is both true and ignored, or an
            image of a single-label set without exactly one class.
    """

    rows_N: NDArray[np.int64]
    """Rows of the data artifact."""
    names: list[str]
    split: str
    """``test`` or ``val``."""
    classes: list[str]
    multi_label: bool
    truth_NC: Truth
    ignored_NC: Truth
    """Pairs of image and class that count neither for nor against; never true ones."""
    scores_NC: Scores
    decided: bool
    """Whether a score of 0 means even odds, so that precision and recall of "score > 0" make sense."""
    untrained: list[str] = field(default_factory=list)
    """Classes of which the images that were trained on are all positive, or all negative."""

    def __post_init__(self) -> None:
        """Check what the metrics rely on."""
        images = len(self.names)
        if twice := sorted({name for name in self.classes if self.classes.count(name) > 1}):
            raise MlsError(f"two classes have the same name: {', '.join(twice)}; rename one in the data set")
        if (wrong_NC := np.isnan(self.scores_NC)).any():
            image, index = np.argwhere(wrong_NC)[0]
            raise MlsError(
                f"the scores of {wrong_NC.any(axis=1).sum()} of {images} {self.split} images are NaN; "
                f"the first: class {self.classes[index]} of {self.names[image]}"
            )
        if (wrong_NC := self.truth_NC & self.ignored_NC).any():
            image, index = np.argwhere(wrong_NC)[0]
            raise MlsError(f"{self.names[image]}: class {self.classes[index]} is both true and ignored")
        if not self.multi_label and (wrong_N := (self.truth_NC.sum(axis=1) != 1) | self.ignored_NC.any(axis=1)).any():
            raise MlsError(
                f"each image of a single-label set has one class and ignores none; {wrong_N.sum()} of {images} "
                f"{self.split} images break this rule; the first: {self.names[int(wrong_N.argmax())]}"
            )


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """Return the metrics of some scores for ``metrics.json``, in percent.

    On test: ``mAP``, ``mAP_11`` and ``mAP_envelope`` (see `mls.metrics`), with ``decided`` also ``CP`` ..
    ``OF1``; or ``top1``. On val: ``val``, which is mAP or top-1. See `class_metrics` for the others; ``per_class`` is
    average precision (``area``), also for single-label sets.

    Classes that the split can't tell apart (``undefined_classes``) or train can't (``untrained_classes``) have no
    average precision, and all metrics of a multi-label set are those of the other classes, ``classes_in_mean`` of them.

    Raises:
        MlsError: the set is multi-label, and no class is left.
    """
    untrained_C = np.isin(evaluation.classes, evaluation.untrained)
    truth_NC, ignored_NC = evaluation.truth_NC & ~untrained_C, evaluation.ignored_NC | untrained_C
    arrays = evaluation.scores_NC, truth_NC, ignored_NC
    per_class_C = average_precisions(*arrays)
    intervals = average_precision_intervals(*arrays)
    counted: dict[str, int] = {}
    if evaluation.multi_label:
        counted["classes_in_mean"] = check_told_apart(truth_NC, ignored_NC, evaluation.split)
        headline, values = "mAP", {"mAP": mean_average_precision(*arrays)}
    else:
        scored = evaluation.scores_NC, evaluation.truth_NC
        headline, values = "top1", {"top1": top1(*scored)}
        intervals = Intervals(mean_intervals(hits(*scored)[:, None]).mean, intervals.per_class)
    if evaluation.split == "val":
        headline, values = "val", {"val": values[headline]}
    elif evaluation.multi_label:
        values["mAP_11"] = mean_average_precision(*arrays, "11")
        values["mAP_envelope"] = mean_average_precision(*arrays, "envelope")
        values |= decisions(*arrays) if evaluation.decided else {}
    return {
        **{name: 100 * value for name, value in values.items()},
        **class_metrics(evaluation.classes, per_class_C, headline, intervals, evaluation.split),
        "undefined_classes": names_of(evaluation.classes, ~told_apart(evaluation.truth_NC, evaluation.ignored_NC)),
        "untrained_classes": evaluation.untrained,
        **counted,
        f"n_{evaluation.split}": len(evaluation.names),
    }


def check_told_apart(truth_NC: Truth, ignored_NC: Truth, split: str) -> int:
    """Return how many classes have both a positive and a negative image among those that count.

    Raises:
        MlsError: none has.
    """
    if not (count := int(told_apart(truth_NC, ignored_NC).sum())):
        raise MlsError(
            f"the {split} split of this dataset has no class with both positive and negative images that was trained: "
            "nothing can be evaluated"
        )
    return count


def names_of(classes: Sequence[str], these_C: Truth) -> list[str]:
    """Return the names of some classes."""
    return [name for name, one in zip(classes, these_C, strict=True) if one]


def class_metrics(
    classes: Sequence[str], values_C: NDArray[np.float64], headline: str, intervals: Intervals, split: str
) -> dict[str, Any]:
    """Return what ``metrics.json`` says about each class, in percent, and the intervals.

    Args:
        classes: their names.
        values_C: shares; NaN where a class has no value. Such a class is None in ``per_class``.
        headline: name of the metric whose interval is ``intervals.mean``.
        intervals: 95 % intervals of the headline and of each class, see `mls.probe.bootstrap`.
        split: of the evaluated images.
    """

    def percent(interval: Interval | None) -> list[float] | None:
        return None if interval is None else [100 * end for end in interval]

    per_class = {
        name: None if np.isnan(value) else 100 * float(value) for name, value in zip(classes, values_C, strict=True)
    }
    return {
        "per_class": per_class,
        "interval": {
            "covers": f"{split} sampling only",
            "resamples": RESAMPLES,
            "level": LEVEL,
            headline: percent(intervals.mean),
            "per_class": dict(zip(classes, map(percent, intervals.per_class), strict=True)),
        },
    }


def write_predictions(evaluation: Evaluation, path: Path) -> None:
    """Write scores and labels; see the module for the columns."""
    about = {name: getattr(evaluation, name) for name in About.model_fields}
    columns = [
        evaluation.rows_N,
        evaluation.names,
        [evaluation.split] * len(evaluation.names),
        listed(evaluation.truth_NC),
        listed(evaluation.ignored_NC),
        *evaluation.scores_NC.T,
    ]
    schema = _schema(evaluation.classes).with_metadata({KEY: json.dumps(about, sort_keys=True)})
    pq.write_table(pa.table(columns, schema=schema), path)


class About(BaseModel, strict=True):
    """What the schema's metadata says."""

    classes: list[str]
    multi_label: bool
    decided: bool
    untrained: list[str]


def to_evaluation(table: pa.Table) -> Evaluation:
    """Restore what `write_predictions` wrote, exactly.

    Raises:
        MlsError: the table holds no predictions, its columns are missing, of a wrong type or incomplete, or
            `Evaluation` refuses its content.
    """
    if not any(name.startswith("score:") for name in table.schema.names):
        raise MlsError("holds no scores: name the predictions.parquet of a probe")
    try:
        about = About.model_validate_json((table.schema.metadata or {})[KEY])
    except (KeyError, ValueError) as error:
        raise MlsError(f"does not say its {', '.join(About.model_fields)} in its schema; {AGAIN}") from error
    schema, classes = _schema(about.classes), len(about.classes)
    split = check_columns(table, schema)
    for name in schema.names:
        column = table[name]
        if column.null_count or (pa.types.is_list(column.type) and column.combine_chunks().flatten().null_count):
            raise MlsError(f"column {name} has empty cells; {AGAIN}")
    return Evaluation(
        rows_N=table["image"].to_numpy(),
        names=table["name"].to_pylist(),
        split=split,
        truth_NC=unlisted(table, "classes", classes),
        ignored_NC=unlisted(table, "ignored", classes),
        scores_NC=np.stack([table[f"score:{name}"].to_numpy() for name in about.classes], axis=1),
        **about.model_dump(),
    )


def _schema(classes: Sequence[str]) -> pa.Schema:
    return pa.schema([*IMAGE, *LABELS, *((f"score:{name}", pa.float32()) for name in classes)])
