"""Score detections as COCO does (pycocotools).

    metrics = coco_metrics(store.ground_truth("test"), results, ("box", "mask"))   # {"box_AP": 21.4, "mask_AP": ...}

A result is an entry of COCO's results format, which may hold both a box and a mask:
``{"image_id", "category_id", "bbox" [x, y, w, h], "score", "segmentation" {"size", "counts"}}``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mls.config.transfers import Detectron2Detector, TorchvisionDetector
from mls.data.image_store import ImageStore
from mls.data.masks import polygons
from mls.runtime.errors import MlsError
from mls.runtime.progress import Bar
from mls.runtime.signals import InterruptGuard
from mls.train.finetune import read_ahead
from mls.transfer.detectron2_install import require_detectron2
from mls.transfer.instances import has_mask

STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""The first six numbers of `COCOeval.stats`, in its order."""
TARGETS = {"box": "bbox", "mask": "segm"}
"""Scored target -> pycocotools' word for it."""

Loaded = TypeVar("Loaded")


class DifficultEval(COCOeval):  # type: ignore[misc]
    """COCO's evaluation that also ignores VOC's ``difficult`` objects: neither finding nor missing one counts.

    Unlike a crowd, such an object can be found only once; a second detection of it is a false positive.
    """

    def _prepare(self) -> None:
        super()._prepare()
        for truths in self._gts.values():
            for truth in truths:
                truth["ignore"] = int(bool(truth["ignore"]) or bool(truth.get("difficult", 0)))


def in_batches(
    rows_N: np.ndarray, size: int, load: Callable[[int], Loaded], workers: int, name: str
) -> Iterator[tuple[list[int], list[Loaded]]]:
    """Yield batches of rows and their loaded images, without gradients, and show progress.

    Args:
        rows_N: the images.
        size: images per batch.
        load: loads the image of a row.
        workers: threads that load ahead; no effect on the result.
        name: of the progress bar.

    Raises:
        Interrupted: a signal came; the trained model is in the checkpoint, so only this pass is run again.
    """
    batches = [rows_N[start : start + size].tolist() for start in range(0, len(rows_N), size)]
    images = read_ahead(batches, load, workers)
    with torch.inference_mode(), InterruptGuard() as guard, Bar(name, len(rows_N)) as bar, contextlib.closing(images):
        for rows, loaded in zip(batches, images, strict=True):
            guard.stop_if_asked(lambda: None)
            yield rows, loaded
            bar.advance(len(rows), count=len(rows))


def ground_truth(store: ImageStore, kind: str) -> dict[str, Any]:
    """Return the test split's annotations, a COCO dictionary.

    Raises:
        MlsError: the split holds no image, no instance or, for kind ``instance``, no mask.
    """
    truth = store.ground_truth("test")
    if not len(store.split("test")):
        raise MlsError("the test split of this dataset is empty: there is nothing to evaluate a detector on")
    if not any(not item["iscrowd"] and not item.get("difficult", 0) for item in truth["annotations"]):
        needs = "boxes and masks" if kind == "instance" else "boxes"
        raise MlsError(f"the test split of this dataset holds no instances; the task {kind!r} needs {needs}")
    if kind == "instance" and not any(has_mask(item["segmentation"]) for item in truth["annotations"]):
        raise MlsError("the test split of this dataset holds boxes, but no masks; the task 'detection' needs no masks")
    return truth


def as_result(row: int, label: int, xywh: Sequence[float], score: float, code: dict[str, Any] | None) -> dict[str, Any]:
    """Return an entry of COCO's results, with the model's own numbers: a rounded score would tie with its neighbours.

    Args:
        row: the image.
        label: category id, 1 for the first class.
        xywh: left, top, width, height, pixels, float32.
        score: 0 to 1, float32.
        code: the mask, see `mls.transfer.instances.as_json`; None without.
    """
    entry = {"image_id": row, "category_id": label, "bbox": [shortest(v) for v in xywh], "score": shortest(score)}
    return entry | ({"segmentation": code} if code else {})


def shortest(value: float) -> float:
    """Return the shortest decimal number that is this one in float32.

    It has 9 digits at most, where the same value as a float64 has 17. Order and ties between values stay as they are.
    """
    return float(str(np.float32(value)))


def score_objects(
    task: TorchvisionDetector | Detectron2Detector, store: ImageStore, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return COCO's average precision of boxes and masks; with Detectron2 on VOC also VOC's own."""
    truth = ground_truth(store, task.kind)
    metrics = coco_metrics(truth, results, ("box", "mask") if task.kind == "instance" else ("box",))
    # Only VOC's annotations say whether an object is difficult.
    if isinstance(task, Detectron2Detector) and any("difficult" in item for item in truth["annotations"]):
        require_detectron2("VOC's average precision")
        from mls.transfer.voc_eval import voc_score

        metrics |= voc_score(store, truth, results)
    return metrics


def coco_metrics(truth: dict[str, Any], results: list[dict[str, Any]], targets: Sequence[str]) -> dict[str, Any]:
    """Return COCO's average precision, percent.

    Args:
        truth: a COCO dictionary; every annotation has ``area`` and ``iscrowd``.
        results: entries in COCO's results format that hold the scored targets.
        targets: keys of `TARGETS`.

    Returns:
        ``box_AP`` ... ``mask_APl``, None where the ground truth holds no instance of that kind; and
        ``per_class``: class name -> ``{"box_AP", "mask_AP"}``.
    """
    metrics: dict[str, Any] = {}

    def percent(share: float) -> float | None:  # pycocotools says -1 where there is nothing to find
        return None if share < 0 else 100 * float(share)

    names = {category["id"]: category["name"] for category in truth["categories"]}
    per_class: dict[str, dict[str, float | None]] = {name: {} for name in names.values()}
    for target in targets:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            found = make_coco(truth, as_annotations(results, target))
            true = truth["annotations"] if target == "box" else with_masks(truth["annotations"])
            evaluation = DifficultEval(make_coco(truth, true), found, TARGETS[target])
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        for statistic, value in zip(STATISTICS, evaluation.stats, strict=False):
            metrics[f"{target}_{statistic}"] = percent(value)
        # precision: IoU thresholds, recall thresholds, classes, areas (0: all), detections per image (2: 100)
        precision_TRK = evaluation.eval["precision"][:, :, :, 0, 2]
        for index, category in enumerate(evaluation.params.catIds):
            known = precision_TRK[:, :, index][precision_TRK[:, :, index] > -1]
            per_class[names[category]][f"{target}_AP"] = percent(known.mean() if known.size else -1)
    return {**metrics, "per_class": per_class}


def with_masks(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those with a mask, without polygons of fewer than three points, which pycocotools would take for boxes."""
    kept = [annotation for annotation in annotations if has_mask(annotation["segmentation"])]
    return [
        {**annotation, "segmentation": polygons(annotation["segmentation"])}
        if isinstance(annotation["segmentation"], list)
        else annotation
        for annotation in kept
    ]


def as_annotations(results: list[dict[str, Any]], target: str) -> list[dict[str, Any]]:
    """Return results with the fields that COCOeval reads of annotations.

    Unlike ``COCO.loadRes``, this takes an empty list, and it measures a mask by its pixels even if the entry also holds
    a box (``loadRes`` would sort masks into small, medium and large by their boxes).
    """
    annotations = []
    for number, result in enumerate(results, start=1):
        box = target == "box"
        area = result["bbox"][2] * result["bbox"][3] if box else float(coco_mask.area(result["segmentation"]))
        annotations.append({**result, "id": number, "area": area, "iscrowd": 0})
    return annotations


def make_coco(like: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    """Return an indexed COCO object with the images and categories of ``like``.

    Annotations are copied: COCOeval writes into them.
    """
    coco = COCO()
    coco.dataset = like | {"annotations": [dict(annotation) for annotation in annotations]}
    coco.createIndex()
    return coco
