"""The probe stage: features of a frozen backbone, a linear classifier on them, its score on test (or val).

    python -m mls probe linear/mls:0

Writes ``metrics.json`` (percent) and ``predictions.parquet`` (the judged images' logits: columns ``image``, the row of
the data artifact; ``name``; ``split``; ``score:<class>``). Test is read once, after the strength is chosen on val;
with ``test: false`` it is never read, and val is what is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mls.data.store import Store
from mls.errors import MlsError
from mls.experiment.params import Backbone, LinearProbe
from mls.experiment.stage import Context
from mls.models.backbone import load_backbone
from mls.probe.features import extract
from mls.probe.linear import Fitted, check_finite, fit
from mls.probe.metrics import Scores, average_precisions, top1
from mls.train.runtime import set_up, workers_of

SEED = 1000
"""Nothing here draws random numbers; this fixes the state of every generator all the same."""


def run(context: Context) -> None:
    """Make a probe artifact.

    Raises:
        MlsError: a split without images, features that are not finite, or a dataset without labels.
        Interrupted: a signal came; there is nothing to save.
    """
    task: LinearProbe = context.job.config
    device = set_up(context.execution, SEED)
    store = Store(context.inputs["data"].path)
    pretrain = context.inputs["pretrain"]
    config = Backbone.model_validate(pretrain.read_json("params.json")["resolved"]["backbone"])
    backbone = load_backbone(config, pretrain.file("backbone.safetensors"))
    splits = ("train", "val", "test") if task.test else ("train", "val")
    rows = {split: store.split(split) for split in splits}
    empty = [split for split, found in rows.items() if not len(found)]
    if empty:
        raise MlsError(
            f"the linear probe needs images of {', '.join(splits)}; this dataset has no {' and no '.join(empty)}"
        )

    def features(split: str) -> np.ndarray:
        return extract(
            backbone,
            store,
            rows[split],
            task.image_size,
            device,
            workers=workers_of(context.execution, device),
            name=f"probe {context.label}: {split}",
        )

    val_ND = features("val")
    fitted = fit(
        features("train"),
        store.labels(rows["train"]),
        val_ND,
        store.labels(rows["val"]),
        strengths=task.strengths,
        multi_label=store.multi_label,
        names=store.classes,
        threads=context.execution.threads,
    )
    if fitted.unconverged:
        context.log(f"{fitted.unconverged} fits stopped at the limit of iterations before they converged")
    judged = splits[-1]
    judged_ND = features("test") if task.test else val_ND
    check_finite(judged_ND, judged)
    scores_NC = fitted.scores(judged_ND)
    metrics = summarise(fitted, scores_NC, store.labels(rows[judged]), store, judged)
    metrics |= {f"n_{split}": len(found) for split, found in rows.items()}
    text = json.dumps(metrics, indent=1, sort_keys=True, allow_nan=False)
    (context.out / "metrics.json").write_text(text + "\n", encoding="utf-8")
    write_predictions(store, judged, rows[judged], scores_NC, context.out / "predictions.parquet")


def summarise(fitted: Fitted, scores_NC: Scores, truth_NC: np.ndarray, store: Store, split: str) -> dict[str, Any]:
    """Return the content of ``metrics.json``, in percent.

    ``per_class`` is average precision, also for single-label sets; None, and listed in ``undefined_classes``, where
    the split has no positive image of the class. mAP is the mean of the others; mAP and top-1 are of test alone.
    """
    per_class_C = average_precisions(scores_NC, truth_NC)
    defined_C = ~np.isnan(per_class_C)
    if store.multi_label:
        if not defined_C.any():
            raise MlsError(f"the {split} split of this dataset has no positive image of any class")
        headline = {"mAP": 100 * float(per_class_C[defined_C].mean())}
    else:
        headline = {"top1": 100 * top1(scores_NC, truth_NC)}
    return {
        **(headline if split == "test" else {}),
        "val": 100 * fitted.value,
        "strength": fitted.strength,
        "candidates": {f"{strength:g}": 100 * value for strength, value in fitted.candidates.items()},
        "per_class": {
            name: 100 * float(value) if defined else None
            for name, value, defined in zip(store.classes, per_class_C, defined_C, strict=True)
        },
        "undefined_classes": [name for name, defined in zip(store.classes, defined_C, strict=True) if not defined],
        "untrained_classes": fitted.untrained,
        "unconverged_fits": fitted.unconverged,
    }


def write_predictions(store: Store, split: str, rows: np.ndarray, scores_NC: Scores, path: Path) -> None:
    """Write the logits of a split's images, one float32 column per class."""
    columns: dict[str, pa.Array] = {
        "image": pa.array(rows, pa.int64()),
        "name": pa.array([store.name(int(row)) for row in rows], pa.string()),
        "split": pa.array([split] * len(rows), pa.string()),
    }
    for index, name in enumerate(store.classes):
        columns[f"score:{name}"] = pa.array(scores_NC[:, index], pa.float32())
    pq.write_table(pa.table(columns), path)
