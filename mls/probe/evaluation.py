"""Scores of a split's images and what is true of them: ``predictions.parquet``, and the metrics that follow from it.

    judged = Evaluation(rows_N, names, "test", classes, multi_label, truth_NC, ignored_NC, scores_NC, decided=True)
    write_predictions(judged, out / "predictions.parquet")
    metrics = summarise(read_predictions(out / "predictions.parquet"))     # the same as summarise(judged)

| column | what |
|---|---|
| ``image``, ``name``, ``split`` | the row of the data artifact, the image's name, ``test`` or ``val`` |
| ``classes``, ``ignored`` | indices of its classes, and of those that count neither for nor against it |
| ``score:<class>`` | float32, one column per class, in the classes' order |

The schema's metadata holds, under ``mls``, JSON of ``classes``, ``multi_label`` and ``decided``: the file says all
that a metric needs. Equal scores make equal bytes.

Shape legend: N images, C classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mls.metrics import Scores, Truth, average_precisions, decisions, hits, mean_average_precision, top1
from mls.probe.bootstrap import LEVEL, RESAMPLES, average_precision_intervals, mean_intervals, percent
from mls.runtime.errors import MlsError

SPLITS = ("test", "val")
KEY = b"mls"
AGAIN = "make the probe again"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of some images beside what is true of them: all that a metric needs.

    Raises:
        MlsError: no images or no classes, a class named twice, another split, scores that are NaN, a class that is
            both true and ignored, or an image of a single-label set that has not one class.
        ValueError: arrays whose shapes or types do not match (a fault of the caller's code).
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

    def __post_init__(self) -> None:
        """Check all that the metrics rely on."""
        shape = len(self.names), len(self.classes)
        for name, dtype in (("truth_NC", np.bool_), ("ignored_NC", np.bool_), ("scores_NC", np.float32)):
            found = getattr(self, name)
            if found.shape != shape or found.dtype != dtype:
                raise ValueError(f"{name} is {found.dtype} {found.shape}, not {np.dtype(dtype)} {shape}")
        if self.rows_N.shape != shape[:1] or self.rows_N.dtype != np.int64:
            raise ValueError(f"rows_N is {self.rows_N.dtype} {self.rows_N.shape}, not int64 {shape[:1]}")
        if self.split not in SPLITS:
            raise MlsError(f"split {self.split!r} is none of {', '.join(SPLITS)}")
        if not all(shape):
            raise MlsError(f"there is nothing to judge: {shape[0]} images of {self.split}, {shape[1]} classes")
        if twice := sorted({name for name in self.classes if self.classes.count(name) > 1}):
            raise MlsError(f"two classes have the same name: {', '.join(twice)}; rename one in the data set")
        if (wrong_NC := np.isnan(self.scores_NC)).any():
            image, index = np.argwhere(wrong_NC)[0]
            raise MlsError(
                f"the scores of {wrong_NC.any(axis=1).sum()} of {shape[0]} {self.split} images are NaN; "
                f"the first: class {self.classes[index]} of {self.names[image]}"
            )
        if (wrong_NC := self.truth_NC & self.ignored_NC).any():
            image, index = np.argwhere(wrong_NC)[0]
            raise MlsError(f"{self.names[image]}: class {self.classes[index]} is both true and ignored")
        if not self.multi_label and (wrong_N := (self.truth_NC.sum(axis=1) != 1) | self.ignored_NC.any(axis=1)).any():
            raise MlsError(
                f"each image of a single-label set has one class and ignores none; {wrong_N.sum()} of {shape[0]} "
                f"{self.split} images are not so; the first: {self.names[int(wrong_N.argmax())]}"
            )


def summarise(judged: Evaluation) -> dict[str, Any]:
    """Return what ``metrics.json`` says of these scores, in percent.

    Of test: ``mAP``, ``mAP_11`` and ``mAP_envelope`` (see `mls.metrics`), with ``decided`` also ``CP`` ..
    ``OF1``; or ``top1``. Of val: ``val``, which is mAP or top-1. ``per_class`` is average precision (``area``), also
    for single-label sets; None, and listed in ``undefined_classes``, where no image is positive: mAP is the mean of
    the others. ``interval`` holds the 95 % intervals (see `mls.probe.bootstrap`) of the headline and of each class.

    Raises:
        MlsError: no image of a multi-label split is positive.
    """
    arrays = judged.scores_NC, judged.truth_NC, judged.ignored_NC
    per_class_C = average_precisions(*arrays)
    if judged.multi_label and np.isnan(per_class_C).all():
        raise MlsError(f"the {judged.split} split of this dataset has no positive image of any class")
    sampled = average_precision_intervals(*arrays)
    if judged.multi_label:
        headline, spread = "mAP", sampled.mean
        values = {"mAP": mean_average_precision(*arrays)}
    else:
        headline, spread = "top1", mean_intervals(hits(judged.scores_NC, judged.truth_NC)[:, None]).mean
        values = {"top1": top1(judged.scores_NC, judged.truth_NC)}
    if judged.split == "val":
        values = {"val": values[headline]}
        headline = "val"
    elif judged.multi_label:
        values["mAP_11"] = mean_average_precision(*arrays, "11")
        values["mAP_envelope"] = mean_average_precision(*arrays, "envelope")
        values |= decisions(*arrays) if judged.decided else {}
    values_C = [None if np.isnan(value) else 100 * float(value) for value in per_class_C]
    return {
        **{name: 100 * value for name, value in values.items()},
        "per_class": dict(zip(judged.classes, values_C, strict=True)),
        "undefined_classes": [name for name, value in zip(judged.classes, values_C, strict=True) if value is None],
        f"n_{judged.split}": len(judged.names),
        "interval": {
            "covers": f"{judged.split} sampling only",
            "resamples": RESAMPLES,
            "level": LEVEL,
            headline: percent(spread),
            "per_class": dict(zip(judged.classes, map(percent, sampled.per_class), strict=True)),
        },
    }


def write_predictions(judged: Evaluation, path: Path) -> None:
    """Write scores and truth; see the module for the columns."""
    about = {"classes": judged.classes, "decided": judged.decided, "multi_label": judged.multi_label}
    columns = [
        pa.array(judged.rows_N),
        pa.array(judged.names, pa.string()),
        pa.array([judged.split] * len(judged.names), pa.string()),
        _listed(judged.truth_NC),
        _listed(judged.ignored_NC),
        *(pa.array(scores_N) for scores_N in judged.scores_NC.T),
    ]
    schema = _schema(judged.classes).with_metadata({KEY: json.dumps(about, sort_keys=True)})
    pq.write_table(pa.table(columns, schema=schema), path)


def read_predictions(path: Path) -> Evaluation:
    """Read what `write_predictions` wrote, exactly.

    Raises:
        MlsError: no such file, no predictions, columns that are missing or of another type, nothing in a place, or
            content that `Evaluation` refuses; names the file.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError as error:
        raise MlsError(f"{path} does not exist; name a probe's predictions.parquet") from error
    except (OSError, pa.ArrowException) as error:
        raise MlsError(f"{path} is no readable parquet file ({str(error).strip()}); {AGAIN}") from error
    try:
        return _judged(table)
    except MlsError as error:
        raise MlsError(f"{path}: {error}") from error


def _judged(table: pa.Table) -> Evaluation:
    if not any(name.startswith("score:") for name in table.schema.names):
        raise MlsError("holds no scores: name the predictions.parquet of a classifier")
    about = _about(table.schema.metadata or {})
    schema = _schema(about["classes"])
    missing = [name for name in schema.names if table.schema.names.count(name) != 1]
    surplus = sorted(set(table.schema.names) - set(schema.names))
    if missing or surplus:
        problems = [f"does not hold {', '.join(missing)} once"] if missing else []
        problems += [f"holds {', '.join(surplus)}, which is no column of it"] if surplus else []
        raise MlsError(f"{' and '.join(problems)}; {AGAIN}")
    for field in schema:
        column = table[field.name]
        if column.type != field.type:
            raise MlsError(f"column {field.name} is {column.type}, not {field.type}; {AGAIN}")
        if column.null_count or (pa.types.is_list(column.type) and column.combine_chunks().flatten().null_count):
            raise MlsError(f"column {field.name} holds nothing in some places; {AGAIN}")
    splits = sorted(set(table["split"].to_pylist()))
    if len(splits) != 1:
        raise MlsError(f"holds images of {len(splits)} splits, not of one ({', '.join(splits) or 'it has no rows'})")
    shape = len(table), len(about["classes"])
    scores_NC = np.empty(shape, dtype=np.float32)
    for index, name in enumerate(about["classes"]):
        scores_NC[:, index] = table[f"score:{name}"].to_numpy()
    return Evaluation(
        rows_N=table["image"].to_numpy(),
        names=table["name"].to_pylist(),
        split=splits[0],
        classes=about["classes"],
        multi_label=about["multi_label"],
        truth_NC=_unlisted(table, "classes", shape),
        ignored_NC=_unlisted(table, "ignored", shape),
        scores_NC=scores_NC,
        decided=about["decided"],
    )


def _about(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    try:
        about = json.loads(metadata[KEY])
        names = about["classes"]
        right = isinstance(names, list) and all(isinstance(name, str) for name in names)
        right = right and isinstance(about["multi_label"], bool) and isinstance(about["decided"], bool)
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise MlsError(f"does not say its classes, multi_label and decided in its schema; {AGAIN}")
    return {key: about[key] for key in ("classes", "multi_label", "decided")}


def _schema(classes: list[str]) -> pa.Schema:
    fields = {"image": pa.int64(), "name": pa.string(), "split": pa.string()}
    fields |= {"classes": pa.list_(pa.int32()), "ignored": pa.list_(pa.int32())}
    return pa.schema([*fields.items(), *((f"score:{name}", pa.float32()) for name in classes)])


def _listed(mask_NC: Truth) -> pa.ListArray:
    """List each image's class indices."""
    ends = np.append(0, np.cumsum(mask_NC.sum(axis=1)))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(np.nonzero(mask_NC)[1], pa.int32()))


def _unlisted(table: pa.Table, name: str, shape: tuple[int, int]) -> Truth:
    """Undo `_listed`: bool (N, C)."""
    lists = table[name].combine_chunks()
    indices = lists.flatten().to_numpy()
    if len(indices) and not (indices.min() >= 0 and indices.max() < shape[1]):
        raise MlsError(f"column {name} holds indices that are none of its {shape[1]} classes; {AGAIN}")
    mask_NC = np.zeros(shape, dtype=bool)
    mask_NC[np.repeat(np.arange(shape[0]), lists.value_lengths().to_numpy()), indices] = True
    return mask_NC
